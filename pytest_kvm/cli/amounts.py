"""Durations and sizes as commands print them."""

from __future__ import annotations

_SIZES = ((1024**3, "GiB"), (1024**2, "MiB"), (1024, "KiB"), (1, "B"))
_DURATIONS = ((86400, "d"), (3600, "h"), (60, "min"), (1, "s"))


def duration(seconds: float) -> str:
    """Return a duration in its largest unit, rounded down: ``"3 min"``."""
    unit, name = next((each for each in _DURATIONS if seconds >= each[0]), _DURATIONS[-1])
    return f"{max(0, int(seconds)) // unit} {name}"


def size(count: int) -> str:
    """Return a number of bytes with three digits: ``"1.5 GiB"``."""
    unit, name = next((each for each in _SIZES if count >= each[0]), _SIZES[-1])
    return f"{count / unit:.3g} {name}" if count < 1000 * unit else f"{count / unit:.0f} {name}"
