"""``@pytest.mark.kvm``: replaces fields of specs for one test."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from pytest_kvm.errors import SpecError

if TYPE_CHECKING:
    import pytest

    from pytest_kvm.spec.guest import GuestSpec

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
