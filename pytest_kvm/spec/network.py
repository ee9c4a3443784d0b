"""``NetworkSpec``: what a segment is made of; ``Network``: a segment as the specs of its guests name it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import Literal

from pytest_kvm.errors import SpecError
from pytest_kvm.sizes import parse_bits_per_second
from pytest_kvm.spec.subnets import (
    Address,
    IpVersion,
    Subnet,
    check_subnet_text,
    is_host,
    is_point_to_point,
    other_field,
)
from pytest_kvm.spec.value import check_choice, is_number, put, spec_value

NetworkBackend = Literal["auto", "switch", "libvirt"]
Forward = Literal["isolated", "nat", "routed"]
VirtualPort = Literal["openvswitch"]

_LEAST_MTU = 68
_LEAST_MTU6 = 1280
"""A link that carries IPv6 must carry packets of this size (RFC 8200, section 5)."""
_MOST_MTU = 65521
"""The largest MTU that Linux accepts for a virtio card; other models take less."""
_MOST_VLAN = 4094
_BITS_PER_KILOBYTE = 8000
"""libvirt counts bandwidths in kilobytes per second."""
_MOST_KILOBYTES = 4_000_000
"""tc(8) counts the bytes of a burst in 32 bits, and libvirt asks for a burst of one second."""
_DEVICE = re.compile(r"(?!\.{1,2}$)[A-Za-z0-9_.][A-Za-z0-9_.-]{0,14}")
"""Names that Linux allows for a network device (``dev_valid_name()`` in net/core/dev.c), without odd ones."""
_OF_LIBVIRT = ("bridge", "virtualport", "vlan", "trunk", "inbound", "outbound")
"""Fields that ask for what only libvirt has, as ``forward`` does."""


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
    run. ``auto``: the switch, unless a field below asks for what only libvirt has."""
    forward: Forward = "isolated"
    """What guests reach beyond the segment. ``isolated``: nothing, or what is on ``bridge``. ``nat``: what
    the host reaches, which sees the host's address. ``routed``: likewise, but it sees the guest's address,
    and needs a route back."""
    bridge: str | None = None
    """A bridge of the host that guests are put on, instead of one that is made for the run."""
    virtualport: VirtualPort | None = None
    """``openvswitch``: the bridge is one of Open vSwitch. None: it is one of Linux."""
    vlan: int | None = None
    """VLAN of the bridge that guests are in: their own frames have no tag."""
    trunk: Sequence[int] = ()
    """VLANs of the bridge that guests reach by frames with a tag. Without ``vlan`` cards have no addresses,
    because frames without a tag lead nowhere."""
    inbound: str | float | None = None
    """Bandwidth towards each card, such as ``10Mbit``, or bits per second; None: no limit."""
    outbound: str | float | None = None
    """Bandwidth from each card, likewise; what a card sends in one second may pass at once."""

    def __post_init__(self) -> None:
        """Check that the fields make a segment."""
        self._check_bridge()
        check_subnet_text(self.subnet, version=4, field="NetworkSpec.subnet")
        check_subnet_text(self.subnet6, version=6, field="NetworkSpec.subnet6")
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
        self._check_backend()
        if self.forward != "isolated":
            self._check_way_out()
        for field in ("inbound", "outbound"):
            self.kilobytes_per_second(field)

    @property
    def is_libvirt(self) -> bool:
        """Whether the segment is a libvirt network."""
        return self.backend == "libvirt" or bool(self.libvirt_fields)

    @property
    def libvirt_fields(self) -> list[str]:
        """The fields given that ask for what only libvirt has."""
        fields = [name for name in _OF_LIBVIRT if getattr(self, name) not in (None, ())]
        return fields if self.forward == "isolated" else ["forward", *fields]

    @property
    def has_addresses_of_its_run(self) -> bool:
        """Whether its guests have addresses, of IP or of Ethernet, that no other run has."""
        return self.bridge is not None or (self.forward != "isolated" and self.subnet6 == "auto")

    def kilobytes_per_second(self, field: Literal["inbound", "outbound"]) -> int | None:
        """Return a bandwidth as libvirt counts it; None if it has no limit.

        Raises:
            SpecError: The field is no bandwidth, or one that libvirt cannot set.
        """
        bandwidth = getattr(self, field)
        if bandwidth is None:
            return None
        bits = parse_bits_per_second(bandwidth, field=f"NetworkSpec.{field}")
        kilobytes = round(bits / _BITS_PER_KILOBYTE)
        if not 1 <= kilobytes <= _MOST_KILOBYTES:
            raise SpecError(
                f"NetworkSpec.{field}: {bandwidth!r} is no bandwidth that libvirt can set",
                resolution='from "8kbit" to "32Gbit"',
            )
        return kilobytes

    def _check_backend(self) -> None:
        if self.backend == "switch" and self.libvirt_fields:
            name = self.libvirt_fields[0]
            raise SpecError(
                f"NetworkSpec.{name}: {getattr(self, name)!r}, and the run's switch has no such thing",
                resolution='leave backend out, or set it to "libvirt"',
            )

    def _check_bridge(self) -> None:
        self._check_vlans()
        if self.bridge is None:
            for field in ("virtualport", "vlan", "trunk"):
                if getattr(self, field):
                    raise SpecError(
                        f"NetworkSpec.{field}: given without a bridge of the host",
                        resolution='name it: bridge="br0"',
                    )
            return
        if not _DEVICE.fullmatch(self.bridge):
            raise SpecError(f"NetworkSpec.bridge: {self.bridge!r} is not the name of a network device")
        if self.forward != "isolated":
            raise SpecError(
                f"NetworkSpec.bridge: given together with forward={self.forward!r}",
                resolution="choose one: what is beyond a bridge of the host is not up to the run",
            )
        if self.virtualport is not None:
            check_choice(self.virtualport, VirtualPort, field="NetworkSpec.virtualport")
            if (self.inbound, self.outbound) != (None, None):
                raise SpecError(
                    "NetworkSpec.virtualport: given together with inbound or outbound",
                    resolution="leave them out, and use rate() in tests: Open vSwitch hides failures",
                )

    def _check_vlans(self) -> None:
        if isinstance(self.trunk, (str, bytes)) or not all(map(is_number, self.trunk)):
            raise SpecError(
                f"NetworkSpec.trunk: {self.trunk!r} is no list of VLANs", resolution="write [5, 6]"
            )
        put(self, "trunk", tuple(self.trunk))
        for field, vlan in (("vlan", self.vlan), *(("trunk", each) for each in self.trunk)):
            if vlan is not None and not 1 <= vlan <= _MOST_VLAN:
                raise SpecError(f"NetworkSpec.{field}: {vlan!r} is no VLAN from 1 to {_MOST_VLAN}")
        if len({self.vlan, *self.trunk}) <= len(self.trunk):
            raise SpecError(
                f"NetworkSpec.trunk: {list(self.trunk)!r} names a VLAN twice, or that of vlan=",
                resolution="name each once: frames of vlan= have no tag",
            )
        if self.trunk and self.vlan is None:
            self._leave_cards_alone()

    def _leave_cards_alone(self) -> None:
        """See to it that no card has addresses on a trunk where frames without a tag lead nowhere."""
        for field in ("subnet", "subnet6"):
            given = getattr(self, field)
            if given == "auto":
                put(self, field, None)
            elif given is not None:
                raise SpecError(
                    f"NetworkSpec.{field}: frames without a tag lead nowhere with trunk= alone",
                    resolution="name a VLAN for them, vlan=; or leave the subnet out",
                )

    def _check_way_out(self) -> None:
        if self.subnet is None and self.subnet6 is None:
            raise SpecError(
                f"NetworkSpec.forward: {self.forward!r}, and the segment has no addresses",
                resolution="give it a subnet or a subnet6",
            )
        for field, text in (("subnet", self.subnet), ("subnet6", self.subnet6)):
            if text not in (None, "auto") and is_point_to_point(ip_network(text)):
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
        field = (spec.libvirt_fields or ["backend"])[0]
        raise SpecError(
            f"NetworkSpec.{field} of {name} is {getattr(spec, field)!r}: only libvirt's system daemon makes "
            f"networks, and the connection is {uri}",
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
            f"{field}: {text} is an IPv{address.version} address",
            resolution=f"it goes into {other_field(field)}",
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
