"""Chooses the subnets of segments, and the MAC and IP addresses of the cards on them.

All are the same in each run of the same tests: subnets follow from the segment's name,
MAC addresses from the link's, and IP addresses from the order in which guests join.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterator, Mapping
from ipaddress import IPv4Interface, IPv4Network, IPv6Interface, IPv6Network, ip_address
from typing import TYPE_CHECKING

from pytest_kvm.errors import SpecError
from pytest_kvm.spec.network import hosts_in_order

if TYPE_CHECKING:
    from pytest_kvm.handles.segment import GuestNic, Segment
    from pytest_kvm.spec.network import Address, NetworkSpec, Subnet
    from pytest_kvm.spec.nic import Nic

_MOST_SUBNETS = 256
_QEMU_MAC = "52:54:00"
"""Begin of the locally administered MAC addresses that QEMU uses."""


def choose_subnet4(name: str, spec: NetworkSpec, *, others: Collection[Segment]) -> IPv4Network | None:
    """Return the IPv4 subnet of a segment: its own, or one that no other segment has; None if it has none.

    Raises:
        SpecError: The other segments have every subnet that the run can choose.
    """
    if spec.subnet is None or spec.subnet != "auto":
        return None if spec.subnet is None else IPv4Network(spec.subnet)
    taken = [other.subnet for other in others if other.subnet is not None]
    for number in _numbers(name):
        subnet = IPv4Network(f"10.90.{number}.0/24")
        if not any(map(subnet.overlaps, taken)):
            return subnet
    raise _no_subnet_left(name, field="subnet")


def choose_subnet6(name: str, spec: NetworkSpec, *, others: Collection[Segment]) -> IPv6Network | None:
    """Return the IPv6 subnet of a segment; otherwise as :func:`choose_subnet4`."""
    if spec.subnet6 is None or spec.subnet6 != "auto":
        return None if spec.subnet6 is None else IPv6Network(spec.subnet6)
    taken = [other.subnet6 for other in others if other.subnet6 is not None]
    for number in _numbers(name):
        # A unique local address (RFC 4193); 6b766d is "kvm" in hexadecimal.
        subnet = IPv6Network(f"fd6b:766d:0:{number:x}::/64")
        if not any(map(subnet.overlaps, taken)):
            return subnet
    raise _no_subnet_left(name, field="subnet6")


def choose_mac(nic: Nic, segment: Segment, *, link: str, reserved: Collection[str]) -> str:
    """Return the MAC address of a card: its own, or one that no other card on the segment has.

    Args:
        nic: The card's spec.
        segment: The segment that it is on.
        link: Name of its link.
        reserved: MAC addresses of other cards of the guest.

    Raises:
        SpecError: Another card on the segment has the address that the spec gives.
    """
    holders = {other.mac: other for other in segment.nics}
    if nic.mac is not None:
        if nic.mac in holders:
            raise SpecError(
                f"Nic.mac: {nic.mac} is the address of {holders[nic.mac].link} on {segment.name}",
                resolution="give each card its own MAC address, or leave it out",
            )
        return nic.mac
    return next(mac for mac in _macs(f"{segment.name}/{link}") if mac not in holders and mac not in reserved)


def choose_interface4(nic: Nic, segment: Segment, *, reserved: Collection[str]) -> IPv4Interface | None:
    """Return the IPv4 address of a card: its own, or the next free one; None if it has no fixed one.

    Args:
        nic: The card's spec.
        segment: The segment that it is on.
        reserved: Addresses that a card has only if its spec names it.

    Raises:
        SpecError: Another card has the address, or no address is free.
    """
    if segment.subnet is None or not nic.has_fixed_address:
        return None
    holders = {other.address: other for other in segment.nics if other.address is not None}
    address = _choose_address(
        segment, segment.subnet, nic.address, holders=holders, reserved=reserved, field="Nic.address"
    )
    return IPv4Interface(f"{address}/{segment.subnet.prefixlen}")


def choose_interface6(nic: Nic, segment: Segment, *, reserved: Collection[str]) -> IPv6Interface | None:
    """Return the IPv6 address of a card; otherwise as :func:`choose_interface4`."""
    if segment.subnet6 is None or not nic.has_fixed_address:
        return None
    holders = {other.address6: other for other in segment.nics if other.address6 is not None}
    address = _choose_address(
        segment, segment.subnet6, nic.address6, holders=holders, reserved=reserved, field="Nic.address6"
    )
    return IPv6Interface(f"{address}/{segment.subnet6.prefixlen}")


def _choose_address(
    segment: Segment,
    subnet: Subnet,
    given: str | None,
    *,
    holders: Mapping[Address, GuestNic],
    reserved: Collection[str],
    field: str,
) -> Address:
    if given is not None:
        address = ip_address(given)
        if address in holders:
            raise SpecError(
                f"{field}: {given} is the address of {holders[address].link} on {segment.name}",
                resolution="give each card its own address; what is left out is given from the tenth on",
            )
        return address

    def free(avoid: Collection[str]) -> Address | None:
        hosts = (each for each in hosts_in_order(subnet) if each not in holders)
        return next((each for each in hosts if str(each) not in avoid), None)

    chosen = free(reserved) or free(())
    if chosen is None:
        raise SpecError(
            f"{field}: no address is free in {subnet}, the subnet of {segment.name}",
            resolution="give the segment a larger subnet, or let it choose one",
        )
    return chosen


def _numbers(name: str) -> Iterator[int]:
    """Yield the numbers of subnets, beginning with one that follows from the segment's name."""
    first = hashlib.sha256(name.encode()).digest()[0]
    return ((first + offset) % _MOST_SUBNETS for offset in range(_MOST_SUBNETS))


def _no_subnet_left(name: str, *, field: str) -> SpecError:
    return SpecError(
        f"NetworkSpec.{field} of {name}: all {_MOST_SUBNETS} subnets that a run can choose are in use",
        resolution="give the segment a subnet of its own",
    )


def _macs(name: str) -> Iterator[str]:
    """Yield MAC addresses without end, beginning with one that follows from the link's name."""
    number = int.from_bytes(hashlib.sha256(name.encode()).digest()[:3], "big")
    while True:
        yield ":".join([_QEMU_MAC, *(f"{octet:02x}" for octet in number.to_bytes(3, "big"))])
        number = (number + 1) % (1 << 24)
