"""How wrong a guest's clock is, as far as that can be seen from here."""

from __future__ import annotations

import time

_SECOND = 1_000_000_000
_LOOKS = 5


def clock_error(guest) -> tuple[float, float]:
    """Return by how many seconds a guest's clock is off, and how far that may be wrong."""
    looks = []
    for _ in range(_LOOKS):
        before = time.time_ns()
        told = int(guest.agent.call("guest-get-time"))
        after = time.time_ns()
        looks.append(((after - before) / _SECOND, abs(told - (before + after) // 2) / _SECOND))
    round_trip, error = min(looks)
    return error, round_trip / 2
