"""Chooses the subnets of segments, and the MAC and IP addresses of the cards on them.

Subnets follow from the segment's name, MAC addresses from the link's, and IP addresses from
the order in which guests join. All are the same in each run of the same tests, but where the
host or guests of other runs can have them, too.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterator, Sequence
from ipaddress import IPv4Interface, IPv4Network, IPv6Interface, IPv6Network
from typing import TYPE_CHECKING, Literal, TypeVar

from pytest_kvm.errors import SpecError
from pytest_kvm.spec.subnets import hosts_in_order

if TYPE_CHECKING:
    from pytest_kvm.handles.segment import Segment
    from pytest_kvm.spec.network import Network, NetworkSpec
    from pytest_kvm.spec.nic import Nic
    from pytest_kvm.spec.subnets import Subnet

N = TypeVar("N", IPv4Network, IPv6Network)

_MOST_SUBNETS = 256
_QEMU_MAC = "52:54:00"
"""Begin of the locally administered MAC addresses that QEMU uses."""


def choose_subnet4(
    name: str, spec: NetworkSpec, *, others: Collection[Network], run: str = ""
) -> IPv4Network | None:
    """Return the IPv4 subnet of a segment: its own, or one that no other segment has; None if it has none.

    Args:
        name: The segment's name.
        spec: What it is made of.
        others: The other segments of the run.
        run: Id of the run, eight hexadecimal digits, if another run may be where its addresses count, too.

    Raises:
        SpecError: The other segments have every subnet that the run can choose.
    """
    if spec.subnet != "auto":
        return None if spec.subnet is None else IPv4Network(spec.subnet)
    candidates = (IPv4Network(f"10.90.{number}.0/24") for number in _numbers(name + run))
    taken = [other.subnet for other in others]
    return _first_clear(candidates, taken, field=f"NetworkSpec.subnet of {name}")


def choose_subnet6(
    name: str, spec: NetworkSpec, *, others: Collection[Network], run: str = ""
) -> IPv6Network | None:
    """Return the IPv6 subnet of a segment; otherwise as :func:`choose_subnet4`.

    Addresses also count where the host has one: libvirt does not see that two networks have
    the same subnet of IPv6.
    """
    if spec.subnet6 != "auto":
        return None if spec.subnet6 is None else IPv6Network(spec.subnet6)
    # Unique local addresses (RFC 4193); 6b766d is "kvm" in hexadecimal.
    site = f"fd6b:{run[:4]}:{run[4:]}" if run else "fd6b:766d:0"
    candidates = (IPv6Network(f"{site}:{number:x}::/64") for number in _numbers(name))
    taken = [other.subnet6 for other in others]
    return _first_clear(candidates, taken, field=f"NetworkSpec.subnet6 of {name}")


def _first_clear(candidates: Iterator[N], taken: Sequence[N | None], *, field: str) -> N:
    """Return the first subnet that overlaps none of those taken."""
    for subnet in candidates:
        if not any(subnet.overlaps(other) for other in taken if other is not None):
            return subnet
    raise SpecError(
        f"{field}: all {_MOST_SUBNETS} subnets that a run can choose are in use",
        resolution="give the segment a subnet of its own",
    )


def choose_mac(nic: Nic, segment: Segment, *, link: str, reserved: Collection[str], run: str = "") -> str:
    """Return the MAC address of a card: its own, or one that no other card on the segment has.

    Args:
        nic: The card's spec.
        segment: The segment that it is on.
        link: Name of its link.
        reserved: MAC addresses of other cards of the guest.
        run: Id of the run, if guests of other runs may be on the same Ethernet.

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
    return next(
        mac for mac in _macs(f"{segment.name}/{link}{run}") if mac not in holders and mac not in reserved
    )


def choose_interface4(nic: Nic, segment: Segment, *, reserved: Collection[str]) -> IPv4Interface | None:
    """Return the IPv4 address of a card: its own, or the next free one; None if it has no fixed one.

    Args:
        nic: The card's spec.
        segment: The segment that it is on.
        reserved: Addresses that a card has only if its spec names it.

    Raises:
        SpecError: Another card has the address, or no address is free.
    """
    chosen = _choose_address(nic, segment, segment.subnet, reserved=reserved, field="address")
    return None if chosen is None else IPv4Interface(chosen)


def choose_interface6(nic: Nic, segment: Segment, *, reserved: Collection[str]) -> IPv6Interface | None:
    """Return the IPv6 address of a card; otherwise as :func:`choose_interface4`."""
    chosen = _choose_address(nic, segment, segment.subnet6, reserved=reserved, field="address6")
    return None if chosen is None else IPv6Interface(chosen)


def _choose_address(
    nic: Nic,
    segment: Segment,
    subnet: Subnet | None,
    *,
    reserved: Collection[str],
    field: Literal["address", "address6"],
) -> str | None:
    """Return an address with its prefix length."""
    if subnet is None or not nic.has_fixed_address:
        return None
    given: str | None = getattr(nic, field)
    holders = {str(getattr(other, field)): other for other in segment.nics}
    if given in holders:
        raise SpecError(
            f"Nic.{field}: {given} is the address of {holders[given].link} on {segment.name}",
            resolution="give each card its own address; what is left out is given from the tenth on",
        )
    taken = {*holders, *map(str, segment.gateways)}
    chosen = given or _first_free(subnet, taken.union(reserved)) or _first_free(subnet, taken)
    if chosen is None:
        raise SpecError(
            f"Nic.{field}: no address is free in {subnet}, the subnet of {segment.name}",
            resolution="give the segment a larger subnet, or let it choose one",
        )
    return f"{chosen}/{subnet.prefixlen}"


def _first_free(subnet: Subnet, taken: Collection[str]) -> str | None:
    return next((host for host in map(str, hosts_in_order(subnet)) if host not in taken), None)


def _numbers(name: str) -> Iterator[int]:
    """Yield the numbers of subnets, beginning with one that follows from the segment's name."""
    first = hashlib.sha256(name.encode()).digest()[0]
    return ((first + offset) % _MOST_SUBNETS for offset in range(_MOST_SUBNETS))


def _macs(name: str) -> Iterator[str]:
    """Yield MAC addresses without end, beginning with one that follows from the link's name."""
    number = int.from_bytes(hashlib.sha256(name.encode()).digest()[:3], "big")
    while True:
        yield ":".join([_QEMU_MAC, *(f"{octet:02x}" for octet in number.to_bytes(3, "big"))])
        number = (number + 1) % (1 << 24)
