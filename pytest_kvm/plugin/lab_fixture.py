"""``@kvm.lab_template``: makes a fixture of a function that forms a lab of several guests."""

from __future__ import annotations

import functools
import hashlib
import inspect
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast, overload

import pytest

from pytest_kvm.errors import SpecError
from pytest_kvm.plugin.declare import fixture_function
from pytest_kvm.plugin.session import run_of

if TYPE_CHECKING:
    from pytest_kvm.handles.guest import Guest
    from pytest_kvm.handles.lab import Lab

LabScope = Literal["session", "package", "module", "class"]
FormFunction = Callable[..., None]


@overload
def lab_template(function: FormFunction, /) -> Any: ...  # noqa: ANN401 - pytest's fixture object is private
@overload
def lab_template(
    *,
    scope: LabScope = ...,
    depends_on: Sequence[str | Path] = ...,
    name: str | None = ...,
    autouse: bool = ...,
) -> Callable[[FormFunction], Any]: ...
def lab_template(
    function: FormFunction | None = None,
    /,
    *,
    scope: LabScope = "module",
    depends_on: Sequence[str | Path] = (),
    name: str | None = None,
    autouse: bool = False,
) -> Any:
    """Make a fixture out of a function that forms a lab once: later runs start from what it has left.

    The function asks for the guests that it forms something of, and for networks;
    tests that ask for the fixture get the :class:`~pytest_kvm.Lab` of these
    guests. When the function returns, all guests are frozen at one moment, and
    kept in the boot cache. A later run starts its guests from there, and does
    not call the function. It is called again if something has changed: a
    guest's spec, name or address, the file that the function is in, another
    argument, or a file of ``depends_on``.

    Whatever the function does has to be in the guests when it returns: it
    returns nothing, leaves no process of ``guest.start()``, no forwarded port
    and no fault, and does nothing outside of the guests.

    Args:
        function: The decorated function, if the decorator is written without parentheses. Besides guests
            and networks it may ask for fixtures whose values are texts, numbers, True, False, None or
            tuples and lists of them.
        scope: How long the guests stay so; wider than a test, because guests are reset between tests.
        depends_on: Other host files and folders that the function reads, such as scripts that it copies
            into guests. Relative paths are taken from the folder of the function's file.
        name: The fixture's name; None: the function's.
        autouse: Whether every test in the fixture's reach uses the lab.

    Raises:
        SpecError: The function yields or is asynchronous, or the scope is that of a test. At the
            fixture's set-up: the function asks for something else, asks for no guest, returns something,
            or leaves something that a later run would not have (a process, a forwarded port, a fault, a
            guest that is off or paused); a file of ``depends_on`` cannot be read.
    """

    def decorate(function: FormFunction) -> Any:  # noqa: ANN401 - as above
        _check_declared(function, scope)
        source = _FormingSource.of(function, depends_on)

        def form(
            call: functools.partial[object], request: pytest.FixtureRequest, fixture: str
        ) -> Iterator[Lab]:
            from pytest_kvm.handles.lab import Lab  # noqa: PLC0415 - loads libvirt

            lab = Lab(*_guests_among(call.keywords, fixture))
            run_of(request.config).form(
                lab.guests,
                name=fixture,
                function=functools.partial(_form, call, fixture),
                digest=functools.partial(source.digest, call.keywords, fixture),
            )
            yield lab

        made = fixture_function(function, form, name=name)
        return pytest.fixture(scope=scope, name=name, autouse=autouse)(made)

    return decorate if function is None else decorate(function)


def _check_declared(function: FormFunction, scope: str) -> None:
    """Check what can be seen of a declaration.

    Raises:
        SpecError: It cannot be that of a lab template.
    """
    name = function.__qualname__
    if inspect.isgeneratorfunction(function):
        raise SpecError(
            f"the lab template {name} yields, but it has no teardown: a later run does not call it",
            resolution="yield nothing: the fixture's value is the lab of its guests",
        )
    if inspect.iscoroutinefunction(function) or inspect.isasyncgenfunction(function):
        raise SpecError(f"the lab template {name} is asynchronous", resolution="write it with def")
    if scope == "function":
        raise SpecError(
            f'the lab template {name} has the scope "function"',
            resolution='give it a wider one, such as "module": between tests guests are put back to it',
        )


def _form(call: Callable[[], object], fixture: str) -> None:
    """Call the user's function.

    Raises:
        SpecError: It returned something.
    """
    returned = call()
    if returned is not None:
        raise SpecError(
            f"the lab template {fixture} returned {type(returned).__name__}, which a later run could not",
            resolution="return nothing: the fixture's value is the lab of its guests",
        )


def _guests_among(arguments: dict[str, object], fixture: str) -> list[Guest]:
    """Return the guests among a function's arguments.

    Raises:
        SpecError: There is none.
    """
    from pytest_kvm.handles.guest import Guest  # noqa: PLC0415 - loads libvirt

    guests = [value for value in arguments.values() if isinstance(value, Guest)]
    if not guests:
        raise SpecError(
            f"the lab template {fixture} asks for no guest",
            resolution="ask for the guests that it forms, as arguments of its function",
        )
    return guests


@dataclass(frozen=True, kw_only=True)
class _FormingSource:
    """What a lab depends on, besides its guests."""

    function: str
    file: Path
    text: bytes
    """The file's content when the function was imported."""
    depends_on: tuple[Path, ...] = field(default=())

    @classmethod
    def of(cls, function: FormFunction, depends_on: Sequence[str | Path]) -> _FormingSource:
        """Return what a function depends on.

        Raises:
            SpecError: ``depends_on`` is one text, or the function is in no file.
        """
        if isinstance(depends_on, str | Path):
            raise SpecError(
                f"lab_template: depends_on is the text {str(depends_on)!r}, and not a list of paths",
                resolution=f"write depends_on=[{str(depends_on)!r}]",
            )
        file = Path(inspect.getsourcefile(inspect.unwrap(function)) or "")
        try:
            text = file.read_bytes()
        except OSError as error:
            raise SpecError(
                f"lab_template: the file of {function.__qualname__} cannot be read: {error.strerror}",
                resolution="define the function in a file: its text is part of the template's key",
            ) from None
        paths = tuple(file.parent / path for path in depends_on)
        return cls(function=function.__qualname__, file=file, text=text, depends_on=paths)

    def digest(self, arguments: dict[str, object], fixture: str) -> str:
        """Return a digest of the function's file, its other arguments and the files that it depends on.

        Raises:
            SpecError: An argument is no guest, no segment and no plain value, or a file cannot be read.
        """
        from pytest_kvm.handles.guest import Guest  # noqa: PLC0415 - loads libvirt
        from pytest_kvm.handles.segment import Segment  # noqa: PLC0415 - as above
        from pytest_kvm.provision.file_digests import source_digest  # noqa: PLC0415 - as above
        from pytest_kvm.spec.prepare import HostFile  # noqa: PLC0415 - as above

        told: list[object] = [self.function, hashlib.sha256(self.text).hexdigest()]
        for name, value in arguments.items():
            if isinstance(value, Guest | Segment):
                told.append([name, value.name])
            else:
                told.append([name, _plain(value, name=name, fixture=fixture)])
        for index, path in enumerate(self.depends_on):
            where = f"{fixture}: depends_on[{index}]"
            told.append(source_digest(HostFile(str(path), "/"), field=where))
        return hashlib.sha256(json.dumps(told).encode()).hexdigest()


def _plain(value: object, *, name: str, fixture: str) -> object:
    """Return a value as JSON holds it.

    Raises:
        SpecError: It is more than a text, a number, a truth value, None, or a tuple or list of these.
    """
    if value is None or isinstance(value, str | int | float):
        return [type(value).__name__, value]
    if isinstance(value, tuple | list):
        parts = cast("Sequence[object]", value)
        return [_plain(part, name=name, fixture=fixture) for part in parts]
    raise SpecError(
        f"the lab template {fixture} asks for {name}, whose value is of type {type(value).__name__}: "
        "nobody can tell whether it is the same in a later run",
        resolution="ask for guests, networks and plain values only; use other fixtures in the tests",
    )
