"""Renders the domain XML of a spec and a plan.

Element names and their meaning: https://libvirt.org/formatdomain.html.
"""

from __future__ import annotations

import math
import xml.etree.ElementTree as ET
from collections.abc import Iterator, Sequence
from string import ascii_lowercase
from typing import TYPE_CHECKING

from pytest_kvm.render.plan import DomainPlan
from pytest_kvm.render.qemu_args import (
    QEMU_NAMESPACE,
    add_arguments,
    barrier_args,
    segment_card_ids,
    software_offload_args,
    user_network_args,
)
from pytest_kvm.spec.guest import GuestSpec

if TYPE_CHECKING:
    from pytest_kvm.render.plan import DiskPlan, NicPlan, SegmentNicPlan
    from pytest_kvm.spec.disk import Bus

METADATA_NAMESPACE = "https://pytest-kvm.dev/xmlns/domain/1"
"""Namespace of the metadata that says which run a domain belongs to."""

SPARE_ROOT_PORTS = 4
"""Free PCIe root ports for hot-plugged disks and NICs: on q35 each port takes one device."""

SEGMENT_ROOT_PORTS = 4
"""Root ports for cards on segments, in each guest: those with up to four such cards have the same ports."""

TRANSLATION_CACHE_MIB = 256
"""Size of TCG's translation cache. QEMU's default is an eighth of the host's memory,
at most 1 GiB for each guest; a Debian boot fills about 130 MiB."""


def domain_element(spec: GuestSpec, plan: DomainPlan) -> ET.Element:
    """Return a transient domain, before the spec's ``xml`` hook changes it."""
    domain = ET.Element("domain", type="kvm" if plan.accel == "kvm" else "qemu")
    _identity(domain, spec, plan)
    _machine(domain, spec, plan)
    _devices(domain, spec, plan)
    if plan.run_as is not None:
        add_own_account(domain, user=plan.run_as[0], group=plan.run_as[1])
    lone = [planned for planned in plan.nics if not planned.nic.is_on_host_network]
    add_arguments(domain, user_network_args(plan.control_mac, lone, internet=spec.internet))
    return domain


def to_text(domain: ET.Element) -> str:
    """Return a domain as text, as libvirt takes it."""
    ET.register_namespace("qemu", QEMU_NAMESPACE)
    ET.register_namespace("kvm", METADATA_NAMESPACE)
    ET.indent(domain)
    return ET.tostring(domain, encoding="unicode") + "\n"


def _identity(domain: ET.Element, spec: GuestSpec, plan: DomainPlan) -> None:
    ET.SubElement(domain, "name").text = plan.name
    ET.SubElement(domain, "uuid").text = plan.uuid
    ET.SubElement(domain, "genid").text = plan.genid
    run = ET.SubElement(ET.SubElement(domain, "metadata"), f"{{{METADATA_NAMESPACE}}}run")
    ET.SubElement(run, f"{{{METADATA_NAMESPACE}}}session").text = plan.session
    ET.SubElement(
        run, f"{{{METADATA_NAMESPACE}}}owner", pid=str(plan.owner_pid), started=f"{plan.owner_started:.2f}"
    )
    ET.SubElement(domain, "memory", unit="KiB").text = str(spec.memory_kib)
    ET.SubElement(domain, "vcpu").text = str(spec.vcpus)


def _machine(domain: ET.Element, spec: GuestSpec, plan: DomainPlan) -> None:
    system = (
        ET.SubElement(domain, "os", firmware="efi")
        if spec.firmware == "uefi"
        else ET.SubElement(domain, "os")
    )
    ET.SubElement(system, "type", arch="x86_64", machine="q35").text = "hvm"
    if spec.firmware == "uefi":
        # Without this libvirt may pick a firmware that boots signed loaders only.
        ET.SubElement(ET.SubElement(system, "firmware"), "feature", enabled="no", name="secure-boot")
    elif plan.direct_boot is None:
        # Without this SeaBIOS writes to the screen only. Its message that there
        # is nothing to boot is needed on the serial line: NoBootableDevice.
        ET.SubElement(system, "bios", useserial="yes")
    if plan.direct_boot is not None:
        ET.SubElement(system, "kernel").text = str(plan.direct_boot.kernel)
        if plan.direct_boot.initrd is not None:
            ET.SubElement(system, "initrd").text = str(plan.direct_boot.initrd)
        ET.SubElement(system, "cmdline").text = plan.direct_boot.cmdline
    features = ET.SubElement(domain, "features")
    ET.SubElement(features, "acpi")
    ET.SubElement(features, "apic")
    if plan.accel == "tcg":
        ET.SubElement(ET.SubElement(features, "tcg"), "tb-cache", unit="MiB").text = str(
            TRANSLATION_CACHE_MIB
        )
    _cpu(domain, spec, plan)
    clock = ET.SubElement(domain, "clock", offset="utc")
    ET.SubElement(clock, "timer", name="rtc", tickpolicy="catchup")
    ET.SubElement(clock, "timer", name="pit", tickpolicy="delay")
    ET.SubElement(clock, "timer", name="hpet", present="no")
    ET.SubElement(domain, "on_poweroff").text = "destroy"
    ET.SubElement(domain, "on_reboot").text = "restart"
    ET.SubElement(domain, "on_crash").text = "destroy"


def _cpu(domain: ET.Element, spec: GuestSpec, plan: DomainPlan) -> None:
    if spec.cpu is not None:
        cpu = ET.SubElement(domain, "cpu", mode="custom", match="exact", check="none")
        ET.SubElement(cpu, "model", fallback="forbid").text = spec.cpu
    elif plan.accel == "kvm":
        ET.SubElement(domain, "cpu", mode="host-passthrough", check="none", migratable="on")
    else:
        # QEMU's CPU model "max" has everything that TCG can translate, so that
        # guests built for x86-64-v2 and v3 run. libvirt calls it "maximum".
        ET.SubElement(domain, "cpu", mode="maximum", check="none")


def _devices(domain: ET.Element, spec: GuestSpec, plan: DomainPlan) -> None:
    devices = ET.SubElement(domain, "devices")
    buses: list[Bus] = [disk.bus for disk in plan.disks]
    for kind, model in disk_controllers(buses):
        ET.SubElement(devices, "controller", type=kind, model=model)
    ET.SubElement(devices, "controller", type="pci", index="0", model="pcie-root")
    for port in range(1, first_segment_port(plan) + _segment_ports(spec)):
        ET.SubElement(devices, "controller", type="pci", index=str(port), model="pcie-root-port")
    for disk, target in zip(plan.disks, target_names(buses), strict=True):
        add_disk(devices, disk, target=target, bootable=disk is plan.disks[0] and plan.direct_boot is None)
    for planned in plan.nics:
        if planned.nic.is_on_host_network:
            add_nic(devices, planned)
    _consoles(devices, spec, plan)
    agent = ET.SubElement(devices, "channel", type="unix")
    ET.SubElement(agent, "source", mode="bind", path=str(plan.agent_socket))
    ET.SubElement(agent, "target", type="virtio", name="org.qemu.guest_agent.0")
    rng = ET.SubElement(devices, "rng", model="virtio")
    ET.SubElement(rng, "backend", model="random").text = "/dev/urandom"
    ET.SubElement(ET.SubElement(devices, "video"), "model", type="vga", vram="8192")
    ET.SubElement(devices, "memballoon", model="virtio")


def add_own_account(domain: ET.Element, *, user: int, group: int) -> None:
    """Have QEMU run as this user and group, and have libvirt leave the owners of files as they are.

    By default a system daemon runs QEMU under an account of its own, which may
    not enter the run's folder, and makes that account the owner of the image
    (https://libvirt.org/formatdomain.html#security-label).
    """
    label = ET.SubElement(domain, "seclabel", type="static", model="dac", relabel="no")
    ET.SubElement(label, "label").text = f"+{user}:+{group}"


def _root_ports_used(plan: DomainPlan) -> int:
    """Return how many root ports libvirt's devices take up, which libvirt fills from the first on."""
    always = 3  # random numbers, balloon, the agent's serial bus
    cards = sum(planned.nic.is_on_host_network for planned in plan.nics)
    buses = [disk.bus for disk in plan.disks]
    return always + cards + buses.count("virtio") + ("scsi" in buses) + ("usb" in buses)


def first_segment_port(plan: DomainPlan) -> int:
    """Return the index of the root port for the first card on a segment, after those for libvirt."""
    return _root_ports_used(plan) + SPARE_ROOT_PORTS + 1


def _segment_ports(spec: GuestSpec) -> int:
    """Return how many root ports there are for cards on segments: a multiple of four."""
    cards = sum(nic.segment is not None for nic in spec.nics)
    return max(1, math.ceil(cards / SEGMENT_ROOT_PORTS)) * SEGMENT_ROOT_PORTS


def _consoles(devices: ET.Element, spec: GuestSpec, plan: DomainPlan) -> None:
    """Add the kernel's console with its log; beside a virtio console also a serial line with a log."""
    if spec.console == "virtio":
        serial = ET.SubElement(devices, "serial", type="null")
        ET.SubElement(serial, "log", file=str(plan.firmware_log), append="off")
        ET.SubElement(serial, "target", type="isa-serial", port="0")
        console = ET.SubElement(devices, "console", type="unix")
        target = ("virtio", "0")
    else:
        console = ET.SubElement(devices, "serial", type="unix")
        target = ("isa-serial", "0")
    ET.SubElement(console, "source", mode="bind", path=str(plan.console_socket))
    ET.SubElement(console, "log", file=str(plan.console_log), append="off")
    ET.SubElement(console, "target", type=target[0], port=target[1])


_PREFIX: dict[Bus, str] = {"virtio": "vd", "scsi": "sd", "sata": "sd", "usb": "sd"}


def target_names(buses: Sequence[Bus]) -> list[str]:
    """Return ``vda``, ``vdb``, ``sda``, … for disks on these buses, in order.

    The guest numbers only virtio disks in the same order; a test that has to know
    a disk uses the disk's serial number.
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
    """Return a disk's letters for its number, from 0: a to z, then aa, ab and so on."""
    letters = ""
    number += 1
    while number:
        number, rest = divmod(number - 1, len(ascii_lowercase))
        letters = ascii_lowercase[rest] + letters
    return letters


def disk_controllers(buses: Sequence[Bus]) -> Iterator[tuple[str, str]]:
    """Yield type and model of the controllers that these buses need.

    SATA is part of q35, and each virtio disk has a PCIe port of its own. A guest
    without USB disks gets no USB at all, because probing it costs boot time.
    """
    if "scsi" in buses:
        yield "scsi", "virtio-scsi"
    yield "usb", "qemu-xhci" if "usb" in buses else "none"


def add_disk(devices: ET.Element, disk: DiskPlan, *, target: str, bootable: bool) -> None:
    """Append one ``<disk>``."""
    element = ET.SubElement(devices, "disk", type="file", device="disk")
    # A guest's disks are removed with its run, and a template's are synced when it
    # is complete, so flushing to the host's disk is of no use.
    ET.SubElement(element, "driver", name="qemu", type=disk.format, cache="unsafe", discard="unmap")
    ET.SubElement(element, "source", file=str(disk.path))
    ET.SubElement(element, "target", dev=target, bus=disk.bus)
    if disk.readonly:
        ET.SubElement(element, "readonly")
    if disk.serial is not None:
        ET.SubElement(element, "serial").text = disk.serial
    if bootable:
        ET.SubElement(element, "boot", order="1")


_OFFLOADS = {
    "host": ("csum", "gso", "tso4", "tso6", "ecn", "ufo"),
    "guest": ("csum", "tso4", "tso6", "ecn", "ufo"),
}
"""What a card with a tap device can have others do for it. Cards on ports of the switch have none of it,
and a frame that relies on it cannot be redirected to another guest's card."""


def add_taps(domain: ET.Element, nics: Sequence[SegmentNicPlan], *, first_root_port: int) -> None:
    """Add the cards that are on segments which are libvirt networks, each with a barrier.

    They have the same PCIe places as cards on ports of the switch, and like these no option ROM,
    so that a machine of either kind can be started from a state of the other.

    Args:
        domain: The domain.
        nics: The plans of all cards on segments.
        first_root_port: As for :func:`~pytest_kvm.render.qemu_args.segment_cards`.
    """
    devices = domain.find("devices")
    for index, planned in enumerate(nics):
        if planned.network is None or devices is None:
            continue
        ids = segment_card_ids(index + 1, is_tap=True)
        element = ET.SubElement(devices, "interface", type="network")
        ET.SubElement(element, "mac", address=planned.mac)
        ET.SubElement(element, "source", network=planned.network)
        ET.SubElement(element, "target", dev=planned.tap)
        ET.SubElement(element, "model", type=planned.nic.model)
        if planned.nic.model == "virtio":
            # Not by vhost: frames that pass QEMU by would pass the barrier by, too.
            driver = ET.SubElement(element, "driver", name="qemu")
            for side in ("host", "guest"):
                ET.SubElement(driver, side, dict.fromkeys(_OFFLOADS[side], "off"))
        ET.SubElement(element, "rom", enabled="no")
        ET.SubElement(element, "alias", name=ids.device)
        bus = f"{first_root_port + index:#04x}"
        ET.SubElement(element, "address", type="pci", domain="0x0000", bus=bus, slot="0x00", function="0x0")
        add_arguments(domain, [*barrier_args(ids), *software_offload_args(planned.nic.model)])


def add_nic(devices: ET.Element, planned: NicPlan) -> None:
    """Append one ``<interface>`` on a libvirt network or a host bridge."""
    nic = planned.nic
    kind = "network" if nic.network is not None else "bridge"
    element = ET.SubElement(devices, "interface", type=kind)
    ET.SubElement(element, "mac", address=planned.mac)
    ET.SubElement(element, "source", {kind: str(nic.network or nic.bridge)})
    ET.SubElement(element, "model", type=nic.model)
    if nic.queues > 1:
        ET.SubElement(element, "driver", queues=str(nic.queues))
    ET.SubElement(element, "link", state=nic.link)
