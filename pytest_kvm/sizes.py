"""Sizes as people write them: ``"1GiB"``, ``"512MiB"``."""

from __future__ import annotations

import re

from pytest_kvm.errors import SpecError

_UNITS = {"KiB": 1, "MiB": 1024, "GiB": 1024**2, "TiB": 1024**3}
_SIZE = re.compile(r"\s*(\d+(?:\.\d+)?)\s*(KiB|MiB|GiB|TiB)\s*")


def parse_kib(size: object, *, field: str) -> int:
    """Return a size in KiB.

    Args:
        size: "512MiB", "1.5GiB", "2 TiB".
        field: Where it stands, for the message ("GuestSpec.memory").

    Raises:
        SpecError: The text is no size, has no binary unit, or is not whole KiB.
    """
    match = _SIZE.fullmatch(size) if isinstance(size, str) else None
    if match is None:
        raise SpecError(
            f"{field}: {size!r} is not a size",
            resolution='write a number and a binary unit: "512MiB", "1GiB", "1.5GiB"',
        )
    kib = float(match[1]) * _UNITS[match[2]]
    if kib <= 0 or kib != int(kib):
        raise SpecError(f"{field}: {size!r} is not a positive whole number of KiB")
    return int(kib)
