"""Finds mistakes in specs and markers at collection, where pytest reports mistakes in test files."""

from __future__ import annotations

import dataclasses
import inspect
import os
import traceback
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import pytest

from pytest_kvm.errors import KvmError, SpecError
from pytest_kvm.plugin.declare import (
    FOR_EVERY_GUEST,
    NETWORK_FUNCTION,
    SPEC_FUNCTION,
    checked_guest_spec,
    checked_network_spec,
    overridden,
    overrides_of,
)
from pytest_kvm.plugin.hook_calls import modify_spec
from pytest_kvm.plugin.session import (
    check_connection,
    check_image,
    check_network,
    check_sources,
    reserve_addresses,
    settings_stashed,
)

if TYPE_CHECKING:
    from pytest_kvm.spec.guest import GuestSpec
    from pytest_kvm.spec.network import Network

T = TypeVar("T")
_PACKAGE = str(Path(__file__).parents[1])
_OF_THE_FUNCTION = (
    Exception,
    SystemExit,
    pytest.skip.Exception,
    pytest.fail.Exception,
    pytest.xfail.Exception,
)
"""What a guest's function may raise that is no mistake in a spec: an environment
variable is not set, the function reads more of ``request`` than there is during
collection, the test is to be skipped. The function raises it again at set-up,
where it is the outcome of the tests that use the guest, and of no others."""


def mistakes_in(items: list[pytest.Item]) -> list[str]:
    """Return one text for each mistake in the specs and markers of these tests."""
    checker = _SpecChecker()
    for item in items:
        checker.check(item)
    return checker.mistakes


def uses_guests(item: pytest.Item) -> bool:
    """Say whether a test asks for a guest or for the factory of guests."""
    has_factory = "kvm_guests" in getattr(item, "fixturenames", ())
    return has_factory or any(True for _ in _definitions(item, SPEC_FUNCTION))


def _definitions(item: pytest.Item, mark: str) -> Iterator[Any]:
    """Yield the definitions of a test's guest fixtures or network fixtures."""
    # The closure of a test's fixtures has no public name; pytest-asyncio and
    # pytest-django read the same attribute.
    info = getattr(item, "_fixtureinfo", None)
    for name, definitions in getattr(info, "name2fixturedefs", {}).items():
        for definition in reversed(definitions):
            if hasattr(definition.func, mark):
                yield definition
            if name not in definition.argnames:
                break  # it is not made of the fixture that it overrides


class PlannedGuest(NamedTuple):
    """A guest that a fixture of a test will start."""

    definition: Any
    """pytest's FixtureDef."""
    spec: GuestSpec | None
    """None if it is known only when the fixture runs."""


def planned_guests(item: pytest.Item) -> tuple[PlannedGuest, ...]:
    """Return the guests that a test's fixtures will start."""
    return item.stash.get(_PLANNED, ())


_PLANNED = pytest.StashKey[tuple[PlannedGuest, ...]]()


@dataclass(frozen=True, kw_only=True)
class _Call:
    """A call of a user's function with certain arguments; equal to another such call."""

    key: tuple[int, ...]
    """Identities of the fixture's definition and of the arguments."""
    definition: Any = field(compare=False)
    """pytest's FixtureDef."""
    function: Callable[..., object] = field(compare=False)
    arguments: Mapping[str, object] = field(compare=False)

    @property
    def fixture(self) -> str:
        """The fixture's name."""
        return str(self.definition.argname)

    @classmethod
    def of(
        cls,
        definition: Any,  # noqa: ANN401 - pytest's FixtureDef
        mark: str,
        *,
        item: pytest.Item,
        networks: Mapping[str, Network | None],
    ) -> _Call | None:
        """Return the call that a test makes of a fixture; None if it needs more than collection has."""
        function: Callable[..., object] = getattr(definition.func, mark)
        params: dict[str, object] = getattr(getattr(item, "callspec", None), "params", {})
        arguments: dict[str, object] = {}
        values: list[object] = [definition]
        for name in inspect.signature(function).parameters:
            if name == "request" and definition.argname in params:
                param = params[definition.argname]
                arguments[name] = SimpleNamespace(param=param)
                values.append(param)
            elif networks.get(name) is not None:
                arguments[name] = networks[name]
                values.append(networks[name])
            else:
                return None
        return cls(key=tuple(map(id, values)), definition=definition, function=function, arguments=arguments)


class _SpecChecker:
    """Checks the specs of tests, each once, and whether the guests of a test can be on one segment.

    A guest's function may ask for ``request`` (it gets the param) and for network
    fixtures (it gets networks of which only the spec is known). A function that
    asks for other fixtures is not called, because these exist at set-up only.
    """

    def __init__(self) -> None:
        self.mistakes: list[str] = []
        self._networks: dict[_Call, Network | None] = {}
        self._specs: dict[_Call, GuestSpec | None] = {}
        self._labs: set[tuple[frozenset[_Call], str]] = set()
        """Guests of one test, and what its marker changes in them."""

    def check(self, item: pytest.Item) -> None:
        """Add the mistakes of a test that no test before it had."""
        mistakes = _marker_mistakes(item)
        self.mistakes += mistakes
        overrides = {} if mistakes else overrides_of(item)
        networks: dict[str, Network | None] = {}
        for definition in _definitions(item, NETWORK_FUNCTION):
            networks.setdefault(definition.argname, self._network(definition, item))
        guests: dict[_Call, GuestSpec] = {}
        planned: list[PlannedGuest] = []
        for definition in _definitions(item, SPEC_FUNCTION):
            call = _Call.of(definition, SPEC_FUNCTION, item=item, networks=networks)
            spec = None if call is None else self._guest_spec(call, item)
            if call is not None and spec is not None:
                spec = spec if definition.scope != "function" else overridden(spec, overrides)
                guests[call] = spec
                self._check_gates(call, spec, overrides)
            planned.append(PlannedGuest(definition, spec))
        item.stash[_PLANNED] = tuple(planned)
        lab = frozenset(guests), repr(overrides)
        if lab not in self._labs:
            self._labs.add(lab)
            self._check_lab(guests)

    def _check_gates(self, call: _Call, spec: GuestSpec, overrides: Mapping[str, Any]) -> None:
        """Check that a guest can be asked for the gates of a test's marker."""
        if "gates" in overrides:
            with self._noting(call):
                dataclasses.replace(spec, gates=overrides["gates"])

    def _network(self, definition: Any, item: pytest.Item) -> Network | None:  # noqa: ANN401 - pytest's FixtureDef
        call = _Call.of(definition, NETWORK_FUNCTION, item=item, networks={})
        if call is None:
            return None
        if call not in self._networks:
            with self._noting(call):
                self._networks[call] = None
                self._networks[call] = network = _network_or_none(call)
                if network is not None:
                    check_network(network.spec, settings_stashed(item.config), name=call.fixture)
        return self._networks[call]

    def _guest_spec(self, call: _Call, item: pytest.Item) -> GuestSpec | None:
        if call not in self._specs:
            with self._noting(call):
                self._specs[call] = None
                self._specs[call] = spec = _spec_or_none(call, item)
                if spec is not None:
                    settings = settings_stashed(item.config)
                    check_image(spec, settings)
                    check_connection(spec, settings)
                    check_sources(spec)
                    self._reserve_addresses(spec, item.config)
        return self._specs[call]

    def _reserve_addresses(self, spec: GuestSpec, config: pytest.Config) -> None:
        functions = {network: call.function for call, network in self._networks.items()}
        for nic in spec.nics:
            given = [address for address in (nic.address, nic.address6) if address is not None]
            if given and nic.segment in functions:
                reserve_addresses(config, given, function=functions[nic.segment])

    def _check_lab(self, guests: Mapping[_Call, GuestSpec]) -> None:
        """Check that the guests of one test can be on their segments together."""
        from pytest_kvm.spec.neighbours import check_neighbours  # noqa: PLC0415 - only projects with guests pay

        others: dict[str, GuestSpec] = {}
        for call, spec in guests.items():
            with self._noting(call):
                check_neighbours(call.fixture, spec, others=others)
                others[call.fixture] = spec

    @contextmanager
    def _noting(self, call: _Call) -> Generator[None]:
        """Note a mistake that is found in a block, with its place in the user's files."""
        try:
            yield
        except KvmError as error:
            self.mistakes.append(_with_place(error, *_origin(error, call.function)))
        except OSError:
            pass  # a folder that cannot be read: set-up raises this again, for the tests that need it


def _marker_mistakes(item: pytest.Item) -> list[str]:
    try:
        overrides = overrides_of(item)
    except SpecError as error:
        return [_with_place(error, *_place_of(item))]
    idle_fields = sorted(set(overrides) - FOR_EVERY_GUEST)
    if idle_fields and not _applies(item):
        idle = SpecError(
            f"{item.name}: the kvm marker changes nothing by {', '.join(idle_fields)}, "
            "as the test starts no guest of its own",
            resolution="it applies to function-scoped guest fixtures and to kvm_guests",
        )
        return [_with_place(idle, *_place_of(item))]
    return []


def _applies(item: pytest.Item) -> bool:
    return "kvm_guests" in getattr(item, "fixturenames", ()) or any(
        definition.scope == "function" for definition in _definitions(item, SPEC_FUNCTION)
    )


def _network_or_none(call: _Call) -> Network | None:
    from pytest_kvm.spec.network import declare_network  # noqa: PLC0415 - few projects have segments

    spec = _unless_of_the_function(
        lambda: checked_network_spec(call.function(**call.arguments), call.fixture)
    )
    return None if spec is None else declare_network(call.fixture, spec)


def _spec_or_none(call: _Call, item: pytest.Item) -> GuestSpec | None:
    node = item.session if call.definition.scope == "session" else item
    return _unless_of_the_function(
        lambda: modify_spec(
            node, checked_guest_spec(call.function(**call.arguments), call.fixture), name=call.fixture
        )
    )


def _unless_of_the_function(make_spec: Callable[[], T]) -> T | None:
    """Return a spec; None if the user's function raised what is no mistake in a spec."""
    try:
        return make_spec()
    except KvmError:
        raise
    except _OF_THE_FUNCTION:
        return None


def _origin(error: BaseException, function: Callable[..., object]) -> tuple[str, int]:
    """Return file and line of the user's own code that made the mistake."""
    frames = traceback.extract_tb(error.__traceback__)
    for frame in reversed(frames):
        # A dataclass's __init__ is generated from a string: its file name is "<string>".
        if not frame.filename.startswith((_PACKAGE + os.sep, dataclasses.__file__, "<")):
            return frame.filename, frame.lineno or 0
    code = inspect.unwrap(function).__code__
    return code.co_filename, code.co_firstlineno


def _place_of(item: pytest.Item) -> tuple[str, int]:
    return str(item.path), (item.reportinfo()[1] or 0) + 1


def _with_place(error: KvmError, filename: str, line: int) -> str:
    return f"{os.path.relpath(filename)}:{line}: {type(error).__name__}: {error}"
