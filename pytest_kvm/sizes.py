"""Sizes and bandwidths as people write them: ``"1GiB"``, ``"512MiB"``, ``"10Mbit"``."""

from __future__ import annotations

import re

from pytest_kvm.errors import SpecError

_UNITS = {"KiB": 1, "MiB": 1024, "GiB": 1024**2, "TiB": 1024**3}
_BIT_UNITS = {"bit": 1, "kbit": 10**3, "mbit": 10**6, "gbit": 10**9}
"""Units of tc(8), of which ``kbit`` is 1000 bits; case does not matter."""
_MOST_BITS = 1e12
_BANDWIDTH = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([kmg]?bit)\s*", re.IGNORECASE)
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


def binary_size(count: int) -> str:
    """Return a number of bytes exactly, in the largest unit in which it is a whole number: ``"512MiB"``."""
    for unit, kib in reversed(_UNITS.items()):
        if count % (kib * 1024) == 0:
            return f"{count // (kib * 1024)}{unit}"
    return f"{count} bytes"


def parse_bits_per_second(bandwidth: object, *, field: str) -> float:
    """Return a bandwidth in bits per second.

    Args:
        bandwidth: "10Mbit", "1.5 Gbit", "500kbit", or a number of bits per second.
        field: Where it stands, for the message.

    Raises:
        SpecError: It is no bandwidth, or one that no line has.
    """
    match = _BANDWIDTH.fullmatch(bandwidth) if isinstance(bandwidth, str) else None
    if match is not None:
        bits = float(match[1]) * _BIT_UNITS[match[2].lower()]
    elif isinstance(bandwidth, (int, float)) and not isinstance(bandwidth, bool):
        bits = bandwidth
    else:
        raise SpecError(
            f"{field}: {bandwidth!r} is not a bandwidth",
            resolution='write a number and a unit: "500kbit", "10Mbit", "1.5Gbit"; or bits per second',
        )
    if not 1 <= bits <= _MOST_BITS:
        raise SpecError(f"{field}: {bandwidth!r} is not a bandwidth from 1bit to 1000Gbit")
    return float(bits)
