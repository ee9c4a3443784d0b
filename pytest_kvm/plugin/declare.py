"""``@kvm.guest`` and ``@kvm.network``: make a fixture of a function that returns a spec.

``@pytest.mark.kvm`` replaces fields of a guest's spec for one test.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal, TypeVar, overload

import pytest

from pytest_kvm.errors import SpecError
from pytest_kvm.plugin.session import make_segment, run_of, start_guest

if TYPE_CHECKING:
    from pytest_kvm.handles.guest import Guest
    from pytest_kvm.handles.segment import Segment
    from pytest_kvm.spec.guest import GuestSpec
    from pytest_kvm.spec.network import NetworkSpec

Scope = Literal["session", "package", "module", "class", "function"]
SpecFunction = Callable[..., "GuestSpec"]
NetworkFunction = Callable[..., "NetworkSpec"]
T = TypeVar("T")

SPEC_FUNCTION = "__kvm_spec_function__"
NETWORK_FUNCTION = "__kvm_network_function__"
"""Attributes of a guest's and of a network's fixture function that hold the user's function."""


@overload
def guest(function: SpecFunction, /) -> Any: ...  # noqa: ANN401 - pytest's fixture object is private
@overload
def guest(
    *,
    scope: Scope = ...,
    params: Sequence[object] | None = ...,
    ids: Sequence[str] | Callable[[Any], str | None] | None = ...,
    name: str | None = ...,
    autouse: bool = ...,
) -> Callable[[SpecFunction], Any]: ...
def guest(
    function: SpecFunction | None = None,
    /,
    *,
    scope: Scope = "function",
    params: Sequence[object] | None = None,
    ids: Sequence[str] | Callable[[Any], str | None] | None = None,
    name: str | None = None,
    autouse: bool = False,
) -> Any:
    """Make a fixture out of a function that returns a :class:`~pytest_kvm.GuestSpec`.

    The function may ask for other fixtures. If it asks for none (or only for
    ``request.param`` and for networks), it is also called during collection, once
    for each param and network, so that a mistake in the spec is reported there:
    it should do nothing but build the spec.
    Any other exception is ignored during collection; raised again at set-up, it
    fails or skips the tests that use the guest.

    Args:
        function: The decorated function, if the decorator is written without parentheses.
        scope: How long the guest lives.
        params: One guest is made for each; the function reads ``request.param``.
        ids: Names of the params; by default a text is its own name, and a spec has its image's.
        name: The fixture's name; None: the function's.
        autouse: Whether every test in the fixture's reach uses the guest.
    """

    def start(
        make_spec: Callable[[], object], request: pytest.FixtureRequest, fixture: str
    ) -> Iterator[Guest]:
        spec = checked_guest_spec(make_spec(), fixture)
        if scope == "function":
            spec = overridden(spec, overrides_of(request.node))
        guest = start_guest(request.node, spec, name=fixture, resets=scope != "function")
        try:
            yield guest
        finally:
            run_of(request.config).remove(guest)

    def decorate(spec_function: SpecFunction) -> Any:  # noqa: ANN401 - as above
        made = fixture_function(spec_function, start, name=name, mark=SPEC_FUNCTION)
        return pytest.fixture(scope=scope, params=params, ids=ids or _id_of, name=name, autouse=autouse)(made)

    return decorate if function is None else decorate(function)


@overload
def network(function: NetworkFunction, /) -> Any: ...  # noqa: ANN401 - as above
@overload
def network(
    *,
    scope: Scope = ...,
    params: Sequence[object] | None = ...,
    ids: Sequence[str] | Callable[[Any], str | None] | None = ...,
    name: str | None = ...,
    autouse: bool = ...,
) -> Callable[[NetworkFunction], Any]: ...
def network(
    function: NetworkFunction | None = None,
    /,
    *,
    scope: Scope = "function",
    params: Sequence[object] | None = None,
    ids: Sequence[str] | Callable[[Any], str | None] | None = None,
    name: str | None = None,
    autouse: bool = False,
) -> Any:
    """Make a fixture out of a function that returns a :class:`~pytest_kvm.NetworkSpec`.

    Guest fixtures and tests ask for it and get a :class:`~pytest_kvm.Segment`.
    A guest joins with ``nics=[kvm.Nic(lan)]``. The function is called during
    collection as that of :func:`guest` is.

    Args:
        function: The decorated function, if the decorator is written without parentheses.
        scope: How long the segment lives; pytest refuses a guest of a wider scope on it.
        params: One segment is made for each; the function reads ``request.param``.
        ids: Names of the params.
        name: The fixture's name; None: the function's.
        autouse: Whether every test in the fixture's reach uses the segment.
    """

    def decorate(spec_function: NetworkFunction) -> Any:  # noqa: ANN401 - as above
        def make(
            make_spec: Callable[[], object], request: pytest.FixtureRequest, fixture: str
        ) -> Iterator[Segment]:
            spec = checked_network_spec(make_spec(), fixture)
            segment = make_segment(spec, request.config, name=fixture, function=spec_function)
            try:
                yield segment
            finally:
                run_of(request.config).segments.remove(segment)

        made = fixture_function(spec_function, make, name=name, mark=NETWORK_FUNCTION)
        return pytest.fixture(scope=scope, params=params, ids=ids, name=name, autouse=autouse)(made)

    return decorate if function is None else decorate(function)


def fixture_function(
    function: Callable[..., object],
    provide: Callable[[functools.partial[object], pytest.FixtureRequest, str], Iterator[T]],
    *,
    name: str | None,
    mark: str | None = None,
) -> Callable[..., Iterator[T]]:
    """Return the function that pytest makes a fixture of.

    Args:
        function: The user's function, which may ask for fixtures.
        provide: Gets a call of the user's function, pytest's request and the fixture's name; yields
            what tests get, and removes it afterwards.
        name: The fixture's name; None: the function's.
        mark: Attribute of the returned function that holds the user's function; None: there is none.
    """
    signature = inspect.signature(function)
    wants_request = "request" in signature.parameters

    @functools.wraps(function)
    def provide_value(*self: object, request: pytest.FixtureRequest, **fixtures: object) -> Iterator[T]:
        given = fixtures | ({"request": request} if wants_request else {})
        call = functools.partial(function, *self, **given)
        yield from provide(call, request, name or function.__name__)

    parameters = list(signature.parameters.values())
    if not wants_request:
        parameters.append(inspect.Parameter("request", inspect.Parameter.KEYWORD_ONLY))
    # pytest reads the names of wanted fixtures from the signature.
    provide_value.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    if mark is not None:
        setattr(provide_value, mark, function)
    return provide_value


def checked_guest_spec(spec: object, fixture: str) -> GuestSpec:
    """Return what a guest fixture's function returned, if it is a spec.

    Raises:
        SpecError: It is something else.
    """
    from pytest_kvm.spec.guest import GuestSpec  # noqa: PLC0415 - only projects with guests pay for it

    if not isinstance(spec, GuestSpec):
        raise SpecError(
            f"the guest fixture {fixture} returned {type(spec).__name__}, not a GuestSpec",
            resolution="end it with `return kvm.GuestSpec(…)`; the plugin starts the guest",
        )
    return spec


def checked_network_spec(spec: object, fixture: str) -> NetworkSpec:
    """Return what a network fixture's function returned, if it is a spec.

    Raises:
        SpecError: It is something else.
    """
    from pytest_kvm.spec.network import NetworkSpec  # noqa: PLC0415 - only projects with guests pay for it

    if not isinstance(spec, NetworkSpec):
        raise SpecError(
            f"the network fixture {fixture} returned {type(spec).__name__}, not a NetworkSpec",
            resolution="end it with `return kvm.NetworkSpec(…)`; the plugin makes the segment",
        )
    return spec


def _id_of(param: Any) -> str | None:  # noqa: ANN401 - whatever the user passes
    if isinstance(param, str):
        return param
    reference = getattr(param, "image_ref", None)  # a spec is named after its image
    return None if reference is None else str(reference)


MARKER = (
    "kvm(**fields): fields of GuestSpec that replace those of the guests this test starts for itself "
    '(function-scoped guest fixtures and kvm_guests), such as kvm(memory="2GiB"); '
    'kvm(reset="never"), kernel_errors, kernel_warnings, allow_kernel_errors and gates hold for every '
    "guest the test uses."
)

HEALTH_FIELDS = frozenset({"kernel_errors", "kernel_warnings", "allow_kernel_errors", "gates"})
"""Fields that say what becomes of the test if something goes wrong in a guest; they change no guest."""
FOR_EVERY_GUEST = frozenset({"reset"}) | HEALTH_FIELDS
"""Fields that hold for all guests a test uses, also for those it has not started itself."""


def overrides_of(item: pytest.Item) -> dict[str, Any]:
    """Return the marker's fields; of several markers the closest to the test wins.

    Raises:
        SpecError: A marker has positional arguments, a field that no spec has, or a value that is not valid.
    """
    from pytest_kvm.spec.guest import GuestSpec  # noqa: PLC0415 - only projects with guests pay for it

    merged: dict[str, Any] = {}
    for marker in reversed(list(item.iter_markers("kvm"))):
        if marker.args:
            raise SpecError(
                f"the kvm marker takes no positional arguments, {marker.args!r} given",
                resolution='name the field: @pytest.mark.kvm(memory="2GiB")',
            )
        merged |= marker.kwargs
    if merged:
        GuestSpec(**merged)  # raises for unknown fields and values that are not valid
    return merged


def overridden(spec: GuestSpec, overrides: dict[str, Any]) -> GuestSpec:
    """Return the spec with a marker's fields in place of its own."""
    fields = {name: value for name, value in overrides.items() if name not in HEALTH_FIELDS}
    return replace(spec, **fields) if fields else spec
