"""Ethernet frames as QEMU's ``stream`` back end sends them: each preceded by its length.

https://www.qemu.org/docs/master/system/invocation.html, ``-netdev stream``;
the length is four bytes, most significant first (``net/stream.c``).
"""

from __future__ import annotations

import struct

PREFIX = struct.Struct(">I")
HEADER = 14
"""Bytes of the Ethernet header, which is two addresses and a type: no frame is shorter."""
LONGEST = 69632
"""Bytes of the longest frame QEMU takes (``NET_BUFSIZE`` in ``include/net/net.h``)."""
_VLAN = b"\x81\x00"
_VLAN_ID = 0x0FFF
"""Of a tag; the rest is priority and drop eligibility (IEEE 802.1Q)."""


class BrokenStreamError(Exception):
    """The bytes read from a card cannot be frames."""


def to_wire(frame: bytes) -> bytes:
    """Return a frame as it is sent: preceded by its length."""
    return PREFIX.pack(len(frame)) + frame


def is_group(address: bytes) -> bool:
    """Say whether an Ethernet address is a multicast or the broadcast address."""
    return bool(address[0] & 1)


def station(frame: bytes, at: int) -> bytes:
    """Return a key for a frame's receiver (``at=0``) or sender (``at=6``).

    The key is the address, followed by the frame's VLAN tag if it has one: the
    same address may be another station in each VLAN.

    Args:
        frame: The frame, without its length.
        at: Where the address begins.
    """
    address = frame[at : at + 6]
    if frame[12:14] != _VLAN:
        return address
    tag = int.from_bytes(frame[14:16], "big")
    return address + (tag & _VLAN_ID).to_bytes(2, "big")
