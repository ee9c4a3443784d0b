"""Disks and network cards as libvirt devices."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Iterator, Sequence
from string import ascii_lowercase
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pytest_kvm.render.plan import DiskPlan, NicPlan
    from pytest_kvm.spec.disk import Bus

_PREFIX: dict[Bus, str] = {"virtio": "vd", "scsi": "sd", "sata": "sd", "usb": "sd"}


def target_names(buses: Sequence[Bus]) -> list[str]:
    """Return ``vda``, ``vdb``, ``sda``, … for disks on these buses, in order.

    The guest's own numbering follows it for virtio disks only; tests that care
    use a serial number.
    """
    counts: dict[str, int] = {}
    names: list[str] = []
    for bus in buses:
        prefix = _PREFIX[bus]
        number = counts.get(prefix, 0)
        counts[prefix] = number + 1
        names.append(prefix + _letters(number))
    return names


def _letters(number: int) -> str:
    """Count as disks do: a to z, then aa, ab and so on."""
    letters = ""
    number += 1
    while number:
        number, rest = divmod(number - 1, len(ascii_lowercase))
        letters = ascii_lowercase[rest] + letters
    return letters


def disk_controllers(buses: Sequence[Bus]) -> Iterator[tuple[str, str]]:
    """Yield type and model of the controllers that these buses need.

    SATA is part of q35, virtio disks sit on PCIe ports of their own. A guest
    without USB disks gets no USB at all: probing it costs boot time.
    """
    if "scsi" in buses:
        yield "scsi", "virtio-scsi"
    yield "usb", "qemu-xhci" if "usb" in buses else "none"


def add_disk(devices: ET.Element, disk: DiskPlan, *, target: str, bootable: bool) -> None:
    """Append one ``<disk>``."""
    element = ET.SubElement(devices, "disk", type="file", device="disk")
    # Nothing of a guest outlives its run, so flushes to the host's disk buy nothing.
    ET.SubElement(element, "driver", name="qemu", type=disk.format, cache="unsafe", discard="unmap")
    ET.SubElement(element, "source", file=str(disk.path))
    ET.SubElement(element, "target", dev=target, bus=disk.bus)
    if disk.readonly:
        ET.SubElement(element, "readonly")
    if disk.serial is not None:
        ET.SubElement(element, "serial").text = disk.serial
    if bootable:
        ET.SubElement(element, "boot", order="1")


def add_nic(devices: ET.Element, planned: NicPlan) -> None:
    """Append one ``<interface>`` on a libvirt network or a host bridge."""
    nic = planned.nic
    kind = "network" if nic.network is not None else "bridge"
    element = ET.SubElement(devices, "interface", type=kind)
    ET.SubElement(element, "mac", address=planned.mac)
    ET.SubElement(element, "source", {kind: str(nic.network or nic.bridge)})
    ET.SubElement(element, "model", type=nic.model)
    ET.SubElement(element, "link", state=nic.link)
