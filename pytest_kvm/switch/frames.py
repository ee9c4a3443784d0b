"""Ethernet frames as QEMU's ``stream`` back end sends them: each preceded by its length.

https://www.qemu.org/docs/master/system/invocation.html, ``-netdev stream``;
the length is four bytes, most significant first (``net/stream.c``).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

PREFIX = struct.Struct(">I")
HEADER = 14
"""Bytes of the Ethernet header, which is two addresses and a type: no frame is shorter."""
LONGEST = 69632
"""Bytes of the longest frame QEMU takes (``NET_BUFSIZE`` in ``include/net/net.h``)."""
_ADDRESSES = 12
"""Bytes of the two addresses."""
_VLAN = b"\x81\x00"
_VLAN_ID = 0x0FFF
"""Of a tag; the rest is priority and drop eligibility (IEEE 802.1Q)."""


class BrokenStreamError(Exception):
    """The bytes read from a card cannot be frames."""


def frames_in(data: bytes | memoryview) -> Iterator[tuple[int, int]]:
    """Yield the begin (after its length) and the end of each whole frame.

    Raises:
        BrokenStreamError: The bytes cannot be frames.
    """
    at, size = 0, len(data)
    while at + PREFIX.size <= size:
        (length,) = PREFIX.unpack_from(data, at)
        if length > LONGEST:
            raise BrokenStreamError(f"a frame of {length} bytes")
        begin = at + PREFIX.size
        at = begin + length
        if at > size:
            return
        yield begin, at


def redirected_frames_in(data: bytes | memoryview) -> Iterator[tuple[int, int, int]]:
    """Yield the header's length, the begin (after the header) and the end of each whole redirected frame.

    Raises:
        BrokenStreamError: The bytes cannot be such frames.
    """
    at, size = 0, len(data)
    while at + 2 * PREFIX.size <= size:
        (length,), (header,) = PREFIX.unpack_from(data, at), PREFIX.unpack_from(data, at + PREFIX.size)
        if length > LONGEST or header > length:
            raise BrokenStreamError(f"a frame of {length} bytes with {header} bytes of header")
        begin = at + 2 * PREFIX.size
        at = begin + length
        if at > size:
            return
        yield header, begin + header, at


def length_of_whole_frames(data: bytes) -> int:
    """Return how many bytes at the beginning are whole frames.

    Raises:
        BrokenStreamError: The bytes cannot be frames.
    """
    return max((end for _, end in frames_in(data)), default=0)


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


_ARP, _RARP, _IPV4, _IPV6 = b"\x08\x06", b"\x80\x35", b"\x08\x00", b"\x86\xdd"
_UDP = b"\x11"
_NAMES = frozenset(port.to_bytes(2, "big") for port in (5353, 5355))
"""Ports of mDNS (RFC 6762) and of LLMNR (RFC 4795)."""
_IGMP = b"\x02"
_HOP_BY_HOP, _ICMPV6 = b"\x00", b"\x3a"
_DISCOVERY = frozenset(bytes([each]) for each in (130, 131, 132, 143, 133, 135, 136))
"""Types of ICMPv6 messages: multicast listeners (RFC 3810), router solicitations, neighbours (RFC 4861).
Router advertisements and redirects are not among them: they change a guest's addresses and routes."""


def is_discovery(frame: bytes) -> bool:
    """Say whether a frame only asks or tells who is there, as each machine does that begins to run.

    Kernels do by ARP, IGMP and ICMPv6, and resolvers (systemd-resolved, Avahi)
    by LLMNR and mDNS. A clone's QEMU announces its cards by RARP
    (``net/announce.c``).
    """
    at, kind = HEADER, frame[_ADDRESSES:HEADER]
    if kind == _VLAN:
        at, kind = HEADER + 4, frame[HEADER + 2 : HEADER + 4]
    if kind == _IPV4:
        protocol = frame[at + 9 : at + 10]
        at += 4 * (int.from_bytes(frame[at : at + 1], "big") & 0xF)
    elif kind == _IPV6:
        protocol, at = frame[at + 6 : at + 7], at + 40
        if protocol == _HOP_BY_HOP:  # its length is in units of 8 bytes, the first not counted
            protocol, at = frame[at : at + 1], at + 8 * (1 + int.from_bytes(frame[at + 1 : at + 2], "big"))
    else:
        return kind in (_ARP, _RARP)
    if protocol == _UDP:
        return is_group(frame) and frame[at + 2 : at + 4] in _NAMES
    return protocol == _IGMP or (protocol == _ICMPV6 and frame[at : at + 1] in _DISCOVERY)
