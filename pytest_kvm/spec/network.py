"""``Nic``: a network card that a guest has beside its control card."""

from __future__ import annotations

import re
from dataclasses import field
from typing import Literal

from pytest_kvm.errors import SpecError
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


@spec_value
class Nic:
    """A network card.

    Without ``network`` and ``bridge`` the card is alone on a user-mode network of
    its own, which reaches the outside only if the guest's spec says
    ``internet=True``. ``network`` and ``bridge`` need ``qemu:///system``.
    """

    network: str | None = field(default=None, kw_only=False)
    """Name of a libvirt network."""
    bridge: str | None = None
    """Name of a host bridge."""
    mac: str | None = None
    """MAC address; None: the run chooses one."""
    model: NicModel = "virtio"
    link: LinkState = "up"
    """Whether the cable is plugged in when the guest starts."""
    dhcp: bool = True
    """Whether the guest asks for an address by DHCP; False leaves the card unconfigured."""

    def __post_init__(self) -> None:
        """Check that the fields make a network card."""
        if self.network is not None and self.bridge is not None:
            raise SpecError(
                "Nic: network and bridge are both given", resolution="a card has one plug: choose one"
            )
        for name in ("network", "bridge"):
            value = getattr(self, name)
            if value is not None and not (isinstance(value, str) and _NAME.fullmatch(value)):
                raise SpecError(f"Nic.{name}: {value!r} is not a name")
        if self.mac is not None:
            put(self, "mac", _checked_mac(self.mac))
        check_choice(self.model, NicModel, field="Nic.model")
        check_choice(self.link, LinkState, field="Nic.link")

    @property
    def plugged(self) -> bool:
        """Whether the card is on a network that other guests can join."""
        return self.network is not None or self.bridge is not None


def _checked_mac(mac: str) -> str:
    lower = mac.lower() if isinstance(mac, str) else ""
    if not _MAC.fullmatch(lower):
        raise SpecError(
            f"Nic.mac: {mac!r} is not a MAC address", resolution='write six octets: "52:54:00:12:34:56"'
        )
    if int(lower[:2], 16) & 1:
        raise SpecError(f"Nic.mac: {mac!r} is a multicast address", resolution="the first octet must be even")
    return lower
