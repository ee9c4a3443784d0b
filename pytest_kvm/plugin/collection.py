"""Finds mistakes in specs and markers at collection, where pytest reports mistakes in test files."""

from __future__ import annotations

import dataclasses
import inspect
import os
import traceback
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from pytest_kvm.errors import KvmError, SpecError
from pytest_kvm.plugin.declare import FOR_EVERY_GUEST, SPEC_FUNCTION, SpecFunction, overrides_of, spec_from
from pytest_kvm.plugin.hook_calls import modify_spec
from pytest_kvm.plugin.session import check_image, check_sources, settings_stashed

if TYPE_CHECKING:
    from pytest_kvm.spec.guest import GuestSpec

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
    checked: set[int] = set()
    mistakes: list[str] = []
    for item in items:
        mistakes += _marker_mistakes(item)
        for definition in _guest_definitions(item):
            if id(definition) not in checked:
                checked.add(id(definition))
                mistakes += _definition_mistakes(definition, item)
    return mistakes


def uses_guests(item: pytest.Item) -> bool:
    """Say whether a test asks for a guest or for the factory of guests."""
    return "kvm_guests" in getattr(item, "fixturenames", ()) or any(True for _ in _guest_definitions(item))


def _guest_definitions(item: pytest.Item) -> Iterator[Any]:
    # The closure of a test's fixtures has no public name; pytest-asyncio and
    # pytest-django read the same attribute.
    info = getattr(item, "_fixtureinfo", None)
    for definitions in getattr(info, "name2fixturedefs", {}).values():
        if hasattr(definitions[-1].func, SPEC_FUNCTION):
            yield definitions[-1]


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
        definition.scope == "function" for definition in _guest_definitions(item)
    )


def _definition_mistakes(definition: Any, item: pytest.Item) -> list[str]:  # noqa: ANN401 - pytest's FixtureDef
    function: SpecFunction = getattr(definition.func, SPEC_FUNCTION)
    wanted = list(inspect.signature(function).parameters)
    if wanted == ["request"]:
        calls: list[dict[str, object]] = [
            {"request": SimpleNamespace(param=param)} for param in definition.params or ()
        ]
    elif not wanted:
        calls = [{}]
    else:
        return []  # the spec depends on other fixtures, which exist at set-up only
    mistakes: list[str] = []
    for fixtures in calls:
        mistakes += _call_mistakes(definition, fixtures, item)
    return mistakes


def _call_mistakes(definition: Any, fixtures: dict[str, object], item: pytest.Item) -> list[str]:  # noqa: ANN401 - as above
    try:
        spec = _spec_or_none(definition, fixtures, item)
        if spec is not None:
            check_image(spec, settings_stashed(item.config))
            check_sources(spec)
    except KvmError as error:
        return [_with_place(error, *_origin(error, getattr(definition.func, SPEC_FUNCTION)))]
    except OSError:
        return []  # a folder that cannot be read: set-up raises this again, for the tests that need it
    return []


def _spec_or_none(definition: Any, fixtures: dict[str, object], item: pytest.Item) -> GuestSpec | None:  # noqa: ANN401 - as above
    node = item.session if definition.scope == "session" else item
    try:
        spec = spec_from(getattr(definition.func, SPEC_FUNCTION), **fixtures)
        return modify_spec(node, spec, name=definition.argname)
    except KvmError:
        raise
    except _OF_THE_FUNCTION:
        return None


def _origin(error: BaseException, function: SpecFunction) -> tuple[str, int]:
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
