"""``NetworkSpec``: what a segment is made of, and which addresses its guests may have."""

from __future__ import annotations

from collections.abc import Iterator
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import Literal

from pytest_kvm.errors import SpecError
from pytest_kvm.spec.value import check_choice, spec_value

Address = IPv4Address | IPv6Address
Subnet = IPv4Network | IPv6Network
IpVersion = Literal[4, 6]
NetworkBackend = Literal["auto", "switch", "libvirt"]
Forward = Literal["isolated", "nat", "routed"]

_LEAST_MTU = 68
_LEAST_MTU6 = 1280
"""A link that carries IPv6 must carry packets of this size (RFC 8200, section 5)."""
_MOST_MTU = 65521
"""The largest MTU that Linux accepts for a virtio card; other models take less."""
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


@spec_value
class NetworkSpec:
    """What a segment is made of: an Ethernet that guests of a run are joined by."""

    subnet: str | None = "auto"
    """IPv4 subnet, such as ``10.1.0.0/24``. ``auto``: the run chooses, by the fixture's name.
    None: cards on the segment get no IPv4 address."""
    subnet6: str | None = "auto"
    """IPv6 subnet, such as ``fd00:1::/64``; otherwise as ``subnet``."""
    mtu: int = 1500
    """Largest packet in bytes, which is set on each card of the segment that is not left alone."""
    backend: NetworkBackend = "auto"
    """``switch``: the run's own switch. ``libvirt``: a network that libvirt's system daemon makes for the
    run. ``auto``: the switch, unless ``forward`` asks for what only libvirt has."""
    forward: Forward = "isolated"
    """What guests reach beyond the segment. ``isolated``: nothing. ``nat``: what the host reaches, which
    sees the host's address. ``routed``: likewise, but it sees the guest's address, and needs a route back."""

    def __post_init__(self) -> None:
        """Check that the fields make a segment."""
        _check_subnet(self.subnet, version=4, field="NetworkSpec.subnet")
        _check_subnet(self.subnet6, version=6, field="NetworkSpec.subnet6")
        least, why = (_LEAST_MTU, "")
        if self.subnet6 is not None:
            least, why = (_LEAST_MTU6, ", as IPv6 needs (or subnet6=None)")
        if not least <= self.mtu <= _MOST_MTU:
            raise SpecError(
                f"NetworkSpec.mtu: {self.mtu!r} is no number of bytes that a segment can carry",
                resolution=f"at least {least}{why}, at most {_MOST_MTU}",
            )
        check_choice(self.backend, NetworkBackend, field="NetworkSpec.backend")
        check_choice(self.forward, Forward, field="NetworkSpec.forward")
        if self.forward != "isolated":
            self._check_way_out()

    @property
    def is_libvirt(self) -> bool:
        """Whether the segment is a libvirt network."""
        return self.backend == "libvirt" or self.forward != "isolated"

    def _check_way_out(self) -> None:
        if self.backend == "switch":
            raise SpecError(
                f"NetworkSpec.forward: {self.forward!r}, and nothing leads out of the run's switch",
                resolution='leave backend out, or set it to "libvirt"',
            )
        if self.subnet is None and self.subnet6 is None:
            raise SpecError(
                f"NetworkSpec.forward: {self.forward!r}, and the segment has no addresses",
                resolution="give it a subnet or a subnet6",
            )
        for field, text in (("subnet", self.subnet), ("subnet6", self.subnet6)):
            if text not in (None, "auto") and _is_point_to_point(ip_network(text)):
                raise SpecError(
                    f"NetworkSpec.{field}: {text} is too small for a segment with forward={self.forward!r}",
                    resolution="the host has an address there, too: give it a larger one",
                )


class Network:
    """A segment as specs name it; what a ``@kvm.network`` fixture returns is one.

    During collection there are no segments. Specs are checked against a
    Network then, whose automatic subnets are not known.

    Args:
        name: The fixture's name.
        spec: What the segment is made of.
        subnet: Its IPv4 subnet; None if it has none, or if the run has not chosen it.
        subnet6: Its IPv6 subnet, likewise.
    """

    def __init__(
        self, name: str, spec: NetworkSpec, *, subnet: IPv4Network | None, subnet6: IPv6Network | None
    ) -> None:
        self.name = name
        self.spec = spec
        self._subnet = subnet
        self._subnet6 = subnet6

    def __repr__(self) -> str:
        return f"<Network {self.name}>"

    @property
    def subnet(self) -> IPv4Network | None:
        """The IPv4 subnet; None if the cards on the segment get no IPv4 address.

        Raises:
            LookupError: The run has not chosen it yet; only during collection.
        """
        if self._subnet is None and self.spec.subnet is not None:
            raise LookupError(f"the IPv4 subnet of {self.name} is chosen when the segment is made")
        return self._subnet

    @property
    def subnet6(self) -> IPv6Network | None:
        """The IPv6 subnet, likewise."""
        if self._subnet6 is None and self.spec.subnet6 is not None:
            raise LookupError(f"the IPv6 subnet of {self.name} is chosen when the segment is made")
        return self._subnet6

    @property
    def gateway(self) -> IPv4Address | None:
        """The host's own IPv4 address on the segment; None if the segment is isolated, or has no IPv4 subnet.

        Raises:
            LookupError: As for ``subnet``.
        """
        if self.spec.forward == "isolated":
            return None
        found = self._gateway_in(self.subnet)
        return found if isinstance(found, IPv4Address) else None

    @property
    def gateway6(self) -> IPv6Address | None:
        """The host's own IPv6 address on the segment, likewise."""
        if self.spec.forward == "isolated":
            return None
        found = self._gateway_in(self.subnet6)
        return found if isinstance(found, IPv6Address) else None

    @property
    def gateways(self) -> tuple[Address, ...]:
        """The host's own addresses on the segment, as far as they are known."""
        subnets = (known_subnet(self, 4), known_subnet(self, 6))
        found = (self._gateway_in(subnet) for subnet in subnets)
        return tuple(gateway for gateway in found if gateway is not None)

    def _gateway_in(self, subnet: Subnet | None) -> Address | None:
        """Return the first address of a subnet that a host can have."""
        return None if subnet is None or self.spec.forward == "isolated" else subnet.network_address + 1


def known_subnet(network: Network, version: IpVersion) -> Subnet | None:
    """Return a subnet of a network; None if it has none, or if it is not known yet."""
    try:
        return network.subnet if version == 4 else network.subnet6
    except LookupError:
        return None


def declare_network(name: str, spec: NetworkSpec) -> Network:
    """Return a network of which only the spec is known."""
    known, known6 = (None if given in (None, "auto") else given for given in (spec.subnet, spec.subnet6))
    return Network(
        name,
        spec,
        subnet=None if known is None else IPv4Network(known),
        subnet6=None if known6 is None else IPv6Network(known6),
    )


def check_connection(name: str, spec: NetworkSpec, *, uri: str, is_system: bool) -> None:
    """Make sure that a connection makes the network that a spec asks for.

    Args:
        name: The segment's name.
        spec: What it is made of.
        uri: The connection's URI.
        is_system: Whether libvirt's system daemon is at its other end.

    Raises:
        SpecError: It makes none.
    """
    if spec.is_libvirt and not is_system:
        field, value = ("forward", spec.forward) if spec.forward != "isolated" else ("backend", spec.backend)
        raise SpecError(
            f"NetworkSpec.{field} of {name} is {value!r}: only libvirt's system daemon makes networks, "
            f"and the connection is {uri}",
            resolution="run with --kvm-uri=qemu:///system, or leave the field out",
        )


def check_address(text: str, network: Network, *, field: str) -> str:
    """Return an address that a card on a network can have, in its usual form.

    Args:
        text: The address, without a prefix length.
        network: The network that the card is on.
        field: ``Nic.address`` or ``Nic.address6``.

    Raises:
        SpecError: The text is no address, or the address lies elsewhere.
    """
    version: IpVersion = 6 if field.endswith("6") else 4
    given = network.spec.subnet6 if version == 6 else network.spec.subnet
    subnet = known_subnet(network, version)
    try:
        address = ip_address(text)
    except ValueError:
        raise _not_an_address(text, field=field) from None
    if isinstance(address, IPv6Address) and address.scope_id is not None:
        raise _not_an_address(text, field=field)
    if address.version != version:
        raise SpecError(
            f"{field}: {text} is an IPv{address.version} address", resolution=f"it goes into {_other(field)}"
        )
    if given is None:
        raise SpecError(
            f"{field}: {network.name} has no IPv{version} subnet",
            resolution=f"leave the field out, or give {network.name} one",
        )
    if subnet is not None and address not in subnet:
        raise SpecError(f"{field}: {text} is not in {subnet}, the subnet of {network.name}")
    if subnet is not None and not is_host(address, subnet):
        raise SpecError(f"{field}: {text} is the address of {subnet} itself or its broadcast address")
    if address in network.gateways:
        raise SpecError(
            f"{field}: {text} is the host's own address on {network.name}",
            resolution='choose another: with forward="nat" or "routed" the host has the first of each subnet',
        )
    return str(address)


def _not_an_address(text: str, *, field: str) -> SpecError:
    example = "fd00:1::5" if field.endswith("6") else "10.1.0.5"
    return SpecError(f"{field}: {text!r} is not an IP address", resolution=f'write "{example}"')


def is_host(address: Address, subnet: Subnet) -> bool:
    """Say whether a guest can have an address of a subnet: neither the subnet's own nor the broadcast one."""
    if _is_point_to_point(subnet):
        return True
    broadcast = subnet.broadcast_address if isinstance(subnet, IPv4Network) else None
    return address not in (subnet.network_address, broadcast)


def _is_point_to_point(subnet: Subnet) -> bool:
    """Say whether all addresses of a subnet are hosts (RFC 3021, RFC 6164)."""
    return subnet.prefixlen >= subnet.max_prefixlen - 1


def count_hosts(subnet: Subnet) -> int:
    """Return how many guests can have an address of a subnet."""
    if _is_point_to_point(subnet):
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


def _other(field: str) -> str:
    return field.removesuffix("6") if field.endswith("6") else field + "6"


def _check_subnet(text: str | None, *, version: int, field: str) -> None:
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
            f"{field}: {text} is an IPv{subnet.version} subnet", resolution=f"it goes into {_other(field)}"
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
