"""``@kvm.guest`` declares a guest: makes a fixture of a function that returns a spec.

``@pytest.mark.kvm`` replaces fields of the spec for one test.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal, overload

import pytest

from pytest_kvm.errors import SpecError
from pytest_kvm.plugin.session import run_of, start_guest

if TYPE_CHECKING:
    from pytest_kvm.handles.guest import Guest
    from pytest_kvm.spec.guest import GuestSpec

Scope = Literal["session", "package", "module", "class", "function"]
SpecFunction = Callable[..., "GuestSpec"]

SPEC_FUNCTION = "__kvm_spec_function__"
"""Attribute of a guest fixture's function that holds the user's function."""


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
    ``request.param``), it is also called once during collection, so that a
    mistake in the spec is reported there: it should do nothing but build the spec.
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

    def decorate(spec_function: SpecFunction) -> Any:  # noqa: ANN401 - as above
        fixture_function = _fixture_function(spec_function, name=name or spec_function.__name__, scope=scope)
        return pytest.fixture(scope=scope, params=params, ids=ids or _id_of, name=name, autouse=autouse)(
            fixture_function
        )

    return decorate if function is None else decorate(function)


def _fixture_function(
    spec_function: SpecFunction, *, name: str, scope: Scope
) -> Callable[..., Iterator[Guest]]:
    signature = inspect.signature(spec_function)
    wants_request = "request" in signature.parameters

    @functools.wraps(spec_function)
    def fixture_function(
        *self: object, request: pytest.FixtureRequest, **fixtures: object
    ) -> Iterator[Guest]:
        given = fixtures | ({"request": request} if wants_request else {})
        spec = spec_from(spec_function, *self, **given)
        if scope == "function":
            spec = overridden(spec, overrides_of(request.node))
        guest = start_guest(request.node, spec, name=name, resets=scope != "function")
        try:
            yield guest
        finally:
            run_of(request.config).remove(guest)

    parameters = list(signature.parameters.values())
    if not wants_request:
        parameters.append(inspect.Parameter("request", inspect.Parameter.KEYWORD_ONLY))
    # pytest reads the names of wanted fixtures from the signature.
    fixture_function.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    setattr(fixture_function, SPEC_FUNCTION, spec_function)
    return fixture_function


def spec_from(function: SpecFunction, /, *args: object, **fixtures: object) -> GuestSpec:
    """Call a user's function and return its spec.

    Raises:
        SpecError: The function returned no spec.
    """
    from pytest_kvm.spec.guest import GuestSpec  # noqa: PLC0415 - only projects with guests pay for it

    spec = function(*args, **fixtures)
    if not isinstance(spec, GuestSpec):
        raise SpecError(
            f"the guest fixture {function.__name__} returned {type(spec).__name__}, not a GuestSpec",
            resolution="end it with `return kvm.GuestSpec(…)`; the plugin starts the guest",
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
    'kvm(reset="never") holds for every guest the test uses.'
)

FOR_EVERY_GUEST = frozenset({"reset"})
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
    return replace(spec, **overrides) if overrides else spec
