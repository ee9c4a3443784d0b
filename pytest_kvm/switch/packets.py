"""Frames as objects for assertions; dpkt does the parsing."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from functools import cached_property
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import TYPE_CHECKING, Any

import dpkt

from pytest_kvm.switch.frames import HEADER

if TYPE_CHECKING:
    from pytest_kvm.switch.link import Direction

_TCP_FLAGS = {
    "FIN": dpkt.tcp.TH_FIN,
    "SYN": dpkt.tcp.TH_SYN,
    "RST": dpkt.tcp.TH_RST,
    "PSH": dpkt.tcp.TH_PUSH,
    "ACK": dpkt.tcp.TH_ACK,
    "URG": dpkt.tcp.TH_URG,
}
_PROTOCOLS = {
    dpkt.ip.IP_PROTO_ICMP: "icmp",
    dpkt.ip.IP_PROTO_TCP: "tcp",
    dpkt.ip.IP_PROTO_UDP: "udp",
    dpkt.ip.IP_PROTO_ICMP6: "icmp6",
    dpkt.ip.IP_PROTO_VRRP: "vrrp",
    dpkt.ip.IP_PROTO_GRE: "gre",
    dpkt.ip.IP_PROTO_ESP: "esp",
    dpkt.ip.IP_PROTO_OSPF: "ospf",
    dpkt.ip.IP_PROTO_SCTP: "sctp",
    dpkt.ip.IP_PROTO_IGMP: "igmp",
}
# A guest may send anything, so dpkt may fail in any of these ways.
_NOT_WHAT_IT_SEEMS = (dpkt.Error, struct.error, ValueError, IndexError, KeyError, TypeError, AttributeError)


@dataclass(frozen=True, eq=False)
class Packet:
    """One frame, with the fields that tests use most; a field that the frame does not have is None.

    Args:
        raw: The frame.
        time: When the frame passed, in seconds since the epoch, by the host's clock.
        link: Name of the link that it was captured on, in a segment's capture the sender's; else empty.
        direction: Where it went, seen from that link's guest: ``out`` of the guest or ``in``.
    """

    raw: bytes
    time: float
    link: str = ""
    direction: Direction | None = None

    def __repr__(self) -> str:
        ends = [f"{self.src or self.src_mac}", f"{self.dst or self.dst_mac}"]
        for at, port in enumerate((self.sport, self.dport)):
            if port is not None:
                ends[at] += f" port {port}"
        words = [self.protocol, f"{ends[0]} > {ends[1]}", *sorted(self.tcp_flags)]
        if self.vlan is not None:
            words.append(f"vlan {self.vlan}")
        return f"<Packet {' '.join(words)}, {len(self.raw)} bytes>"

    @cached_property
    def ethernet(self) -> Any:  # noqa: ANN401 - dpkt has no types
        """The frame as ``dpkt.ethernet.Ethernet``, down to the layers dpkt knows."""
        try:
            return dpkt.ethernet.Ethernet(self.raw)
        except _NOT_WHAT_IT_SEEMS:
            header = self.raw[:HEADER].ljust(HEADER, b"\0")
            return dpkt.ethernet.Ethernet(
                dst=header[:6],
                src=header[6:12],
                type=int.from_bytes(header[12:], "big"),
                data=self.raw[HEADER:],
            )

    @property
    def src_mac(self) -> str:
        """The sender's Ethernet address, as ``52:54:00:12:34:56``."""
        return self.raw[6:12].hex(":")

    @property
    def dst_mac(self) -> str:
        """The receiver's Ethernet address."""
        return self.raw[:6].hex(":")

    @property
    def vlan(self) -> int | None:
        """The number of the outermost VLAN."""
        tags = getattr(self.ethernet, "vlan_tags", None)
        return int(tags[0].id) if tags else None

    @property
    def protocol(self) -> str:
        """The protocol: ``arp``, ``tcp``, ``udp``, ``icmp``, …; else its IP protocol number or EtherType."""
        inside = self._ip
        if inside is None:
            return "arp" if _is_a(self.ethernet.data, dpkt.arp.ARP) else f"{self.ethernet.type:#06x}"
        number = int(inside.p)
        return _PROTOCOLS.get(number, str(number))

    @property
    def src(self) -> IPv4Address | IPv6Address | None:
        """The sender's IP address, also that of an ARP message."""
        return self._address("src", "spa")

    @property
    def dst(self) -> IPv4Address | IPv6Address | None:
        """The receiver's IP address, also that of an ARP message."""
        return self._address("dst", "tpa")

    @property
    def sport(self) -> int | None:
        """The sender's TCP or UDP port."""
        return self._transport_field("sport")

    @property
    def dport(self) -> int | None:
        """The receiver's TCP or UDP port."""
        return self._transport_field("dport")

    @property
    def tcp_flags(self) -> frozenset[str]:
        """The TCP flags that are set, out of ``SYN``, ``ACK``, ``FIN``, ``RST``, ``PSH``, ``URG``."""
        flags = int(self._transport.flags) if _is_a(self._transport, dpkt.tcp.TCP) else 0
        return frozenset(name for name, bit in _TCP_FLAGS.items() if flags & bit)

    @property
    def payload(self) -> bytes:
        """The data that TCP or UDP carries; else all that follows the innermost header that dpkt knows."""
        layer: Any = self.ethernet
        while _is_a(layer, dpkt.Packet):
            layer = layer.data
        return bytes(layer)

    @cached_property
    def _ip(self) -> Any:  # noqa: ANN401 - dpkt has no types
        inside = self.ethernet.data
        return inside if _is_a(inside, dpkt.ip.IP, dpkt.ip6.IP6) else None

    @property
    def _transport(self) -> Any:  # noqa: ANN401 - dpkt has no types
        inside = None if self._ip is None else self._ip.data
        return inside if _is_a(inside, dpkt.tcp.TCP, dpkt.udp.UDP) else None

    def _transport_field(self, name: str) -> int | None:
        return None if self._transport is None else int(getattr(self._transport, name))

    def _address(self, name: str, in_arp: str) -> IPv4Address | IPv6Address | None:
        if self._ip is not None:
            return ip_address(bytes(getattr(self._ip, name)))
        arp = self.ethernet.data
        return ip_address(bytes(getattr(arp, in_arp))) if _is_a(arp, dpkt.arp.ARP) else None


def _is_a(layer: Any, *kinds: Any) -> bool:  # noqa: ANN401 - dpkt has no types
    return isinstance(layer, kinds)
