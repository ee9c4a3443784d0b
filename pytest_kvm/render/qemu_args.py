"""QEMU arguments for what libvirt's XML cannot express: some network cards, and memory in a file.

``<interface type='user'>`` has no ``restrict`` and cannot forward a port that
the kernel chooses, no interface connects to a unix socket as QEMU's ``stream``
back end does, and ``<memoryBacking>`` cannot name its file, so QEMU gets
arguments (https://www.qemu.org/docs/master/system/qemu-manpage.html).
"""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from pytest_kvm.spec.nic import CONTROL_NETDEV, user_subnet

if TYPE_CHECKING:
    from pytest_kvm.render.plan import NicPlan, RamFile, SegmentNicPlan

QEMU_NAMESPACE = "http://libvirt.org/schemas/domain/qemu/1.0"
_FIRST_SLOT = 0x10
"""The first PCI slot for cards on q35's root bus. libvirt fills the bus from slot 1
upwards and keeps 0x1f for the chipset, so it does not use these slots."""
_DEVICE = {"virtio": "virtio-net-pci", "e1000e": "e1000e", "rtl8139": "rtl8139"}


_RAM_ID = "kvm-ram"


def add_arguments(domain: ET.Element, arguments: Sequence[str]) -> None:
    """Add arguments to ``<qemu:commandline>``, which libvirt passes to QEMU unchanged."""
    commandline = domain.find(f"{{{QEMU_NAMESPACE}}}commandline")
    if commandline is None:
        commandline = ET.SubElement(domain, f"{{{QEMU_NAMESPACE}}}commandline")
    for argument in arguments:
        ET.SubElement(commandline, f"{{{QEMU_NAMESPACE}}}arg", value=argument)


def user_network_args(control_mac: str, nics: Sequence[NicPlan], *, internet: bool) -> list[str]:
    """Return the arguments for the control card and for the cards that each have a user-mode network."""
    arguments = _control_card(control_mac, internet=internet)
    for index, planned in enumerate(nics, start=1):
        netdev = _user_netdev(index, internet=internet)
        arguments += _card(planned, netdev, bus="pcie.0", slot=_FIRST_SLOT + index).as_arguments()
    return arguments


class Card(NamedTuple):
    """A network card and its back end, as QEMU takes them at its start and in QMP commands."""

    netdev: dict[str, Any]
    """Arguments of ``-netdev`` and ``netdev_add``."""
    device: dict[str, Any]
    """Arguments of ``-device`` and ``device_add``."""

    def as_arguments(self) -> list[str]:
        """Return the arguments by which QEMU has the card from its start on."""
        return ["-netdev", json.dumps(self.netdev), "-device", json.dumps(self.device)]


def segment_cards(nics: Sequence[SegmentNicPlan], *, first_root_port: int) -> list[Card]:
    """Return the cards that connect to ports of the switch.

    Args:
        nics: The plans of all cards on segments.
        first_root_port: Index of the PCIe root port for the first card; the others have the next ones.
    """
    return [
        _card(
            planned,
            _stream_netdev(index + 1, port=str(planned.port)),
            bus=f"pci.{first_root_port + index}",
            slot=0,
        )
        for index, planned in enumerate(nics)
        if planned.network is None
    ]


class CardIds(NamedTuple):
    """QEMU's ids of a network card on a segment."""

    netdev: str
    """Of its back end."""
    device: str
    """Of the card itself."""


def segment_card_ids(number: int, *, is_tap: bool) -> CardIds:
    """Return QEMU's ids of a card on a segment.

    Args:
        number: Its number among the guest's cards on segments, from 1.
        is_tap: Whether libvirt makes the card, on a network of its own. libvirt makes both ids of
            the card's alias.
    """
    netdev = segment_netdev(number)
    return CardIds(f"hostua-{netdev}", f"ua-{netdev}") if is_tap else CardIds(netdev, card_id(netdev))


def software_offload_args(model: str) -> list[str]:
    """Return the arguments by which QEMU itself does what a card with a tap device can leave to others.

    Other models than these can leave nothing to others, or get their settings by libvirt.
    """
    return ["-global", "e1000e.disable_vnet_hdr=1"] if model == "e1000e" else []


def barrier_args(ids: CardIds) -> list[str]:
    """Return the arguments for a barrier between a card and its back end, which is closed.

    It is a filter that sends all frames to a character device which drops them
    (``filter-redirector`` in QEMU's manual page). The guest does not notice it.
    Frames are dropped also while the guest is paused.
    """
    barrier = {
        "qom-type": "filter-redirector",
        "id": _barrier_id(ids),
        "netdev": ids.netdev,
        "queue": "all",
        "outdev": _barrier_id(ids),
        "status": "on",
    }
    return ["-chardev", f"null,id={_barrier_id(ids)}", "-object", json.dumps(barrier)]


def barrier_path(ids: CardIds) -> str:
    """Return the path of a card's barrier among QEMU's objects; it is closed while its ``status`` is on."""
    return f"/objects/{_barrier_id(ids)}"


def _barrier_id(ids: CardIds) -> str:
    return f"{ids.device}-barrier"


def ram_file_args(ram: RamFile, *, kib: int) -> list[str]:
    """Return the arguments that put a guest's memory into a file.

    A second ``-machine`` adds to libvirt's own. The memory block's name must not
    contain the file's path, or a template's state could be loaded at that path
    only (``x-use-canonical-path-for-ramblock-id``).
    """
    backend = {
        "qom-type": "memory-backend-file",
        "id": _RAM_ID,
        "size": kib * 1024,
        "mem-path": str(ram.path),
        "share": ram.shared,
        "x-use-canonical-path-for-ramblock-id": False,
    }
    arguments = ["-object", json.dumps(backend), "-machine", f"memory-backend={_RAM_ID}"]
    return [*arguments, "-incoming", "defer"] if ram.incoming else arguments


def _control_card(mac: str, *, internet: bool) -> list[str]:
    netdev = {
        "type": "user",
        "id": CONTROL_NETDEV,
        "restrict": not internet,
        "ipv6": False,
        # Port 0: the kernel picks a free port while it binds, so that no other
        # process can take the port first. `info usernet` shows the port.
        "hostfwd": [{"str": "tcp:127.0.0.1:0-:22"}],
    }
    device = _device("virtio", CONTROL_NETDEV, mac, bus="pcie.0", slot=_FIRST_SLOT)
    return Card(netdev, device).as_arguments()


def _card(planned: NicPlan, netdev: dict[str, Any], *, bus: str, slot: int) -> Card:
    device = _device(planned.nic.model, str(netdev["id"]), planned.mac, bus=bus, slot=slot)
    return Card(netdev, device)


def _user_netdev(index: int, *, internet: bool) -> dict[str, Any]:
    return {
        "type": "user",
        "id": user_netdev(index),
        "restrict": not internet,
        "ipv6": False,
        "net": str(user_subnet(index)),
    }


def _stream_netdev(index: int, *, port: str) -> dict[str, Any]:
    return {
        "type": "stream",
        "id": segment_netdev(index),
        "server": False,
        "addr": {"type": "unix", "path": port},
    }


def user_netdev(index: int) -> str:
    """Return QEMU's id of the network back end of the index-th card with a user-mode network, from 1."""
    return f"kvmnic{index}"


def segment_netdev(index: int) -> str:
    """Return QEMU's id of the network back end of the index-th card on a segment, from 1."""
    return f"kvmsegment{index}"


def card_id(netdev: str) -> str:
    """Return QEMU's id of the card on a network back end."""
    return f"{netdev}-card"


def _device(model: str, netdev: str, mac: str, *, bus: str, slot: int) -> dict[str, Any]:
    return {
        "driver": _DEVICE[model],
        "netdev": netdev,
        "id": card_id(netdev),
        "mac": mac,
        "bus": bus,
        "addr": f"{slot:#x}",
        # No option ROM: the guest never boots from the network, and
        # loading it costs the firmware time.
        "romfile": "",
    }
