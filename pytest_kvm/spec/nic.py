"""``Nic``: a network card that a guest has beside its control card."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import field
from ipaddress import IPv4Network
from typing import Literal

from pytest_kvm.errors import SpecError
from pytest_kvm.spec.network import Network, check_address, known_subnet
from pytest_kvm.spec.subnets import Subnet
from pytest_kvm.spec.value import check_choice, put, spec_value

CONTROL_NETDEV = "kvmctl"
"""QEMU's id of the control card's network back end."""
CONTROL_ADDRESS = "10.0.2.15"
CONTROL_GATEWAY = "10.0.2.2"
CONTROL_DNS = "10.0.2.3"
"""Addresses that QEMU uses in a user-mode network; the control card is on one
(https://www.qemu.org/docs/master/system/devices/net.html)."""

NicModel = Literal["virtio", "e1000e", "rtl8139"]
LinkState = Literal["up", "down"]
_MAC = re.compile(r"[0-9a-f]{2}(:[0-9a-f]{2}){5}")
_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")
_MOST_QUEUES = 256
"""Queues of a tap device (``MAX_TAP_QUEUES`` in Linux, ``drivers/net/tun.c``)."""
_MOST_MTU: dict[NicModel, int] = {"virtio": 65521, "e1000e": 9000, "rtl8139": 1500}
"""The largest MTU that Linux accepts for each model."""


@spec_value
class Nic:
    """A network card.

    ``network`` is a segment of the run, as a ``@kvm.network`` fixture returns it, or
    the name of a libvirt network. Without ``network`` and ``bridge`` the card is alone
    on a user-mode network of its own, which reaches the outside only if the guest's spec
    says ``internet=True``. libvirt networks and bridges need ``qemu:///system``.
    """

    network: str | Network | None = field(default=None, kw_only=False)
    """A segment, or the name of a libvirt network."""
    bridge: str | None = None
    """Name of a host bridge."""
    address: str | None = None
    """IPv4 address on the segment, without a prefix length; None: the next free one."""
    address6: str | None = None
    """IPv6 address on the segment; None: the next free one."""
    mac: str | None = None
    """MAC address; None: the run chooses one."""
    model: NicModel = "virtio"
    link: LinkState = "up"
    """Whether the cable is plugged in when the guest starts."""
    queues: int = 1
    """Queues of a virtio card in each direction; only libvirt networks and bridges have more than one."""
    dhcp: bool | None = None
    """True: the guest asks for an address by DHCP. False: the card is left unconfigured.
    None: the card has fixed addresses on a segment, and asks by DHCP elsewhere."""

    def __post_init__(self) -> None:
        """Check that the fields make a network card."""
        if self.network is not None and not isinstance(self.network, (str, Network)):
            raise SpecError(
                f"Nic.network: {self.network!r} is no segment and no name",
                resolution="ask for the network's fixture: def web(lan): …, and then Nic(lan)",
            )
        if self.network is not None and self.bridge is not None:
            raise SpecError(
                "Nic: network and bridge are both given", resolution="a card has one plug: choose one"
            )
        for name in ("network", "bridge"):
            value = getattr(self, name)
            if isinstance(value, str) and not _NAME.fullmatch(value):
                raise SpecError(f"Nic.{name}: {value!r} is not a name")
        if self.mac is not None:
            put(self, "mac", _checked_mac(self.mac))
        check_choice(self.model, NicModel, field="Nic.model")
        check_choice(self.link, LinkState, field="Nic.link")
        self._check_queues()
        self._check_addresses()

    @property
    def segment(self) -> Network | None:
        """The segment that the card is on; None if it is not on a segment."""
        return self.network if isinstance(self.network, Network) else None

    @property
    def is_on_host_network(self) -> bool:
        """Whether the card is on a libvirt network or a bridge of the host."""
        return isinstance(self.network, str) or self.bridge is not None

    @property
    def is_shared(self) -> bool:
        """Whether the card is on a network that other guests can join."""
        return self.network is not None or self.bridge is not None

    @property
    def uses_dhcp(self) -> bool:
        """Whether the guest asks for an address by DHCP."""
        return self.segment is None if self.dhcp is None else self.dhcp

    @property
    def has_fixed_address(self) -> bool:
        """Whether the card gets addresses of its segment's subnets."""
        return self.segment is not None and self.dhcp is None

    @property
    def is_tied_to_mac(self) -> bool:
        """Whether a saved state of the card fits only a card with the same MAC address.

        QEMU makes the PCIe serial number of an ``e1000e`` of its MAC address, and
        compares it when it loads a state (``e1000e_gen_dsn`` in hw/net/e1000e.c). The
        EEPROM of an ``rtl8139`` is part of its state, and after a reboot the guest reads
        the MAC address from there (hw/net/rtl8139.c).
        """
        return self.model in ("e1000e", "rtl8139")

    @property
    def prevents_clones(self) -> bool:
        """Whether clones of a guest cannot have the card, as each needs another MAC address there."""
        is_on_bridge = self.segment is not None and self.segment.spec.bridge is not None
        return self.is_tied_to_mac and (self.is_on_host_network or is_on_bridge) and self.mac is None

    def _check_queues(self) -> None:
        if not 1 <= self.queues <= _MOST_QUEUES:
            raise SpecError(f"Nic.queues: {self.queues!r} is not a number from 1 to {_MOST_QUEUES}")
        if self.queues == 1:
            return
        if self.model != "virtio":
            raise SpecError(f"Nic.queues: {self.model} has one queue", resolution='use model="virtio"')
        if not self.is_on_host_network:
            raise SpecError(
                "Nic.queues: QEMU connects a card to a segment, or to a network of its own, by one queue",
                resolution="leave the field out, or name a libvirt network or a bridge",
            )

    def _check_addresses(self) -> None:
        given = {name: getattr(self, name) for name in ("address", "address6")}
        segment = self.segment
        if segment is not None and segment.spec.mtu > _MOST_MTU[self.model]:
            raise SpecError(
                f"Nic.model: {self.model} carries packets of {_MOST_MTU[self.model]} bytes, "
                f"and {segment.name} has an MTU of {segment.spec.mtu}",
                resolution='use model="virtio", or a smaller mtu',
            )
        for name, text in given.items():
            if text is None:
                continue
            if segment is None:
                raise SpecError(
                    f"Nic.{name}: the card is on no segment, which would have addresses",
                    resolution="name a segment first: Nic(lan, …)",
                )
            if self.dhcp is not None:
                raise SpecError(f"Nic.{name}: given together with dhcp", resolution="choose one")
            put(self, name, check_address(text, segment, field=f"Nic.{name}"))


def user_subnet(index: int) -> IPv4Network:
    """Return the subnet of a user-mode network.

    Args:
        index: 1 for the first card of a guest that is on no other network, and so on; 0 for the control card.
    """
    return IPv4Network(f"10.0.{2 + index}.0/24")


def check_subnets(nics: Sequence[Nic], *, field: str) -> None:
    """Check that a guest can tell by an address which of its cards leads there.

    Raises:
        SpecError: Two networks of a guest have addresses in common.
    """
    lone = [nic for nic in nics if not nic.is_shared]
    taken: list[tuple[str, Subnet]] = [
        (f"the network of the card Nic() number {index}", user_subnet(index))
        for index in range(1, len(lone) + 1)
    ]
    segments = dict.fromkeys(nic.segment for nic in nics if nic.segment is not None and nic.has_fixed_address)
    for segment in segments:
        own = [subnet for version in (4, 6) if (subnet := known_subnet(segment, version)) is not None]
        for subnet in own:
            other = next((name for name, each in taken if _overlap(subnet, each)), None)
            if other is not None:
                raise SpecError(
                    f"{field}: {segment.name} is {subnet}, which overlaps {other}",
                    resolution="a guest cannot tell where such an address is: choose another subnet",
                )
        taken += [(f"{segment.name}, which is {subnet}", subnet) for subnet in own]


def _overlap(one: Subnet, other: Subnet) -> bool:
    return one.version == other.version and one.overlaps(other)


def _checked_mac(mac: str) -> str:
    lower = mac.lower() if isinstance(mac, str) else ""
    if not _MAC.fullmatch(lower):
        raise SpecError(
            f"Nic.mac: {mac!r} is not a MAC address", resolution='write six octets: "52:54:00:12:34:56"'
        )
    if int(lower[:2], 16) & 1:
        raise SpecError(f"Nic.mac: {mac!r} is a multicast address", resolution="the first octet must be even")
    return lower
