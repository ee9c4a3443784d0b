"""Ethernet frames as QEMU's ``stream`` back end sends them: each behind its length.

https://www.qemu.org/docs/master/system/invocation.html, ``-netdev stream``;
the length is four bytes, most significant first (``net/stream.c``).
"""

from __future__ import annotations

import struct

PREFIX = struct.Struct(">I")
HEADER = 14
"""Bytes of two addresses and a type: no frame is shorter."""
LONGEST = 69632
"""Bytes of the longest frame QEMU takes (``NET_BUFSIZE`` in ``include/net/net.h``)."""
_VLAN = b"\x81\x00"
_VLAN_ID = 0x0FFF
"""Of a tag; the rest is priority and drop eligibility (IEEE 802.1Q)."""


class BrokenStreamError(Exception):
    """What was read cannot be frames."""


def to_wire(frame: bytes) -> bytes:
    """Return a frame as it is sent."""
    return PREFIX.pack(len(frame)) + frame


def is_group(address: bytes) -> bool:
    """Say whether an address is a multicast one, or everybody's."""
    return bool(address[0] & 1)


def station(frame: bytes, at: int) -> bytes:
    """Return who is meant by the address at 0 (to) or 6 (from): in each VLAN there may be another.

    Args:
        frame: The frame, without its length.
        at: Where the address begins.
    """
    address = frame[at : at + 6]
    if frame[12:14] != _VLAN:
        return address
    tag = int.from_bytes(frame[14:16], "big")
    return address + (tag & _VLAN_ID).to_bytes(2, "big")
