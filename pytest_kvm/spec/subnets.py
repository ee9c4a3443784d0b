"""Subnets of segments: which ones a spec may name, and which addresses guests have there."""

from __future__ import annotations

from collections.abc import Iterator
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_network
from typing import Literal

from pytest_kvm.errors import SpecError

Address = IPv4Address | IPv6Address
Subnet = IPv4Network | IPv6Network
IpVersion = Literal[4, 6]

_LEAST_HOSTS = 2
_FIRST_HOST = 10
"""Addresses that are given in order begin here, because the addresses that users choose are mostly lower."""
_MOST_HOSTS = 1 << 16
"""Addresses of a subnet that are looked through for a free one."""

_NOT_FOR_SEGMENTS: dict[Subnet, str] = {
    IPv4Network("10.0.2.0/24"): "the network of each guest's control card",
    IPv4Network("127.0.0.0/8"): "the addresses of the loopback device",
    IPv4Network("224.0.0.0/3"): "which are no addresses of single machines",
    IPv6Network("::1/128"): "the address of the loopback device",
    IPv6Network("ff00::/8"): "which are no addresses of single machines",
}


def check_subnet_text(text: str | None, *, version: int, field: str) -> None:
    """Check that a text is a subnet that segments can have, ``auto``, or None.

    Raises:
        SpecError: It is not.
    """
    if not isinstance(text, str) or text == "auto":
        return  # None, or refused because of its type
    example = "10.1.0.0/24" if version == 4 else "fd00:1::/64"
    try:
        subnet = ip_network(text)
    except ValueError as problem:
        meant = _subnet_around(text, version=version) or example
        raise SpecError(
            f"{field}: {text!r} is not a subnet: {problem}", resolution=f'write "{meant}"'
        ) from None
    if subnet.version != version:
        raise SpecError(
            f"{field}: {text} is an IPv{subnet.version} subnet",
            resolution=f"it goes into {other_field(field)}",
        )
    for taken, what in _NOT_FOR_SEGMENTS.items():
        if subnet.version == taken.version and subnet.overlaps(taken):
            raise SpecError(
                f"{field}: {text} overlaps {taken}, {what}", resolution=f'choose another, such as "{example}"'
            )
    if subnet.num_addresses < _LEAST_HOSTS:
        raise SpecError(
            f"{field}: {text} has one address, and a segment joins guests", resolution=f'write "{example}"'
        )


def is_host(address: Address, subnet: Subnet) -> bool:
    """Say whether a guest can have an address of a subnet: neither the subnet's own nor the broadcast one."""
    if is_point_to_point(subnet):
        return True
    broadcast = subnet.broadcast_address if isinstance(subnet, IPv4Network) else None
    return address not in (subnet.network_address, broadcast)


def is_point_to_point(subnet: Subnet) -> bool:
    """Say whether all addresses of a subnet are hosts (RFC 3021, RFC 6164)."""
    return subnet.prefixlen >= subnet.max_prefixlen - 1


def count_hosts(subnet: Subnet) -> int:
    """Return how many guests can have an address of a subnet."""
    if is_point_to_point(subnet):
        return subnet.num_addresses
    return subnet.num_addresses - (2 if subnet.version == 4 else 1)


def hosts_in_order(subnet: Subnet) -> Iterator[Address]:
    """Yield the addresses that guests are given, in order: from the tenth on, then those before it."""
    size = min(subnet.num_addresses, _MOST_HOSTS)
    first = _FIRST_HOST if size > _FIRST_HOST else 0
    for offset in (*range(first, size), *range(first)):
        address = subnet.network_address + offset
        if is_host(address, subnet):
            yield address


def _subnet_around(text: str, *, version: int) -> Subnet | None:
    """Return the subnet that an address with a prefix length is in; None if the text is no such address."""
    try:
        subnet = ip_network(text, strict=False)
    except ValueError:
        return None
    return subnet if subnet.version == version else None


def other_field(field: str) -> str:
    """Return the field for the other version of IP: ``subnet6`` for ``subnet``, and so on."""
    return field.removesuffix("6") if field.endswith("6") else field + "6"
