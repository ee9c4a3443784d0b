"""Drafts: a guest's domain XML with placeholders for what differs between its machines.

A guest can have several machines: the one its template is saved from, clones,
those that follow resets. The user's ``xml`` hook is called once for all of them.
The hook gets the domain with placeholders for names, paths and addresses. For
each machine the placeholders that the hook has left are replaced, and the cards
on segments are added, which the hook does not see.
"""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from pytest_kvm.errors import SpecError
from pytest_kvm.render.domain_xml import (
    METADATA_NAMESPACE,
    add_taps,
    domain_element,
    first_segment_port,
    to_text,
)
from pytest_kvm.render.plan import DirectBoot, DiskPlan, DomainPlan, NicPlan
from pytest_kvm.render.qemu_args import Card, add_arguments, ram_file_args, segment_cards
from pytest_kvm.spec.guest import GuestSpec

_FOLDER = Path("/pytest-kvm-placeholder-folder")
"""No part of another placeholder, so that a hook may put the domain's name into a path of its own."""


@dataclass(frozen=True, eq=False, kw_only=True)
class DomainDraft:
    """A domain's XML with placeholders."""

    spec: GuestSpec
    xml: str
    """The XML as the hook returned it; equal for equal guests, in all runs and processes."""
    placeholders: DomainPlan
    """The plan whose values are the placeholders; a machine's plan replaces them."""

    def filled_in(self, plan: DomainPlan) -> str:
        """Return the XML of one machine's transient domain.

        Args:
            plan: The machine's plan, with as many disks and cards as the spec has.
        """
        domain = ET.fromstring(self.xml)  # noqa: S314 - we have just written it
        self._set_disk_formats(domain, plan)
        self._set_log_mode(domain, plan)
        for owner in domain.iter(f"{{{METADATA_NAMESPACE}}}owner"):
            owner.attrib.update(pid=str(plan.owner_pid), started=f"{plan.owner_started:.2f}")
        self._replace_words(domain, plan)
        for card in self.segment_cards(plan):
            add_arguments(domain, card.as_arguments())
        add_taps(domain, plan.segment_nics, first_root_port=first_segment_port(self.placeholders))
        if plan.ram_file is not None:
            add_arguments(domain, ram_file_args(plan.ram_file, kib=self.spec.memory_kib))
        return to_text(domain)

    def segment_cards(self, plan: DomainPlan) -> list[Card]:
        """Return one machine's cards on ports of the switch, with their places on the PCIe bus."""
        return segment_cards(plan.segment_nics, first_root_port=first_segment_port(self.placeholders))

    def without_segments(self) -> DomainDraft:
        """Return the draft of the same domain for a spec that has no cards on segments.

        Up to four such cards have no part in the XML; for more of them there are more root ports.
        """
        spec = replace(self.spec, nics=[nic for nic in self.spec.nics if nic.segment is None])
        nics = [replace(planned, index=index) for index, planned in enumerate(self.placeholders.nics)]
        return replace(self, spec=spec, placeholders=replace(self.placeholders, nics=nics))

    def _set_disk_formats(self, domain: ET.Element, plan: DomainPlan) -> None:
        """Set the formats of a machine's disks: a clone's are overlays, even of raw disks of the template."""
        formats = {
            str(ours.path): disk.format
            for ours, disk in zip(self.placeholders.disks, plan.disks, strict=True)
        }
        for disk in domain.iter("disk"):
            source, driver = disk.find("source"), disk.find("driver")
            if source is not None and driver is not None and source.get("file") in formats:
                driver.set("type", formats[source.attrib["file"]])

    def _set_log_mode(self, domain: ET.Element, plan: DomainPlan) -> None:
        """Have a machine append to the console log of its template, or of its time before it was off."""
        for log in domain.iter("log"):
            if plan.continues_log and log.get("file") == str(self.placeholders.console_log):
                log.set("append", "on")

    def _replace_words(self, domain: ET.Element, plan: DomainPlan) -> None:
        words = dict(zip(_words(self.placeholders), _words(plan), strict=True))
        # The longest first: the folder of a file is a word too.
        known = re.compile("|".join(re.escape(word) for word in sorted(words, key=len, reverse=True)))

        def replace_words(text: str) -> str:
            return known.sub(lambda found: words[found[0]], text)

        for element in domain.iter():
            element.text = element.text and replace_words(element.text)
            for name, value in element.attrib.items():
                element.set(name, replace_words(value))


def draft_domain(
    spec: GuestSpec,
    *,
    accel: Literal["kvm", "tcg"],
    direct_boot: DirectBoot | None,
    run_as: tuple[int, int] | None = None,
) -> DomainDraft:
    """Return the draft of a guest's domain; calls the spec's ``xml`` hook.

    Args:
        spec: What the guest is made of.
        accel: The accelerator.
        direct_boot: The kernel QEMU loads; None: the firmware boots the disk.
        run_as: User and group id that QEMU runs as; None: libvirt decides.

    Raises:
        SpecError: The hook did not return an element.
    """
    placeholders = replace(_placeholders(spec, direct_boot), accel=accel, run_as=run_as)
    domain = domain_element(spec, placeholders)
    if spec.xml is not None:
        domain = spec.xml(domain)
    if not isinstance(domain, ET.Element):
        raise SpecError(
            f"GuestSpec.xml: the hook returned {type(domain).__name__}, not an element",
            resolution="end the hook with `return domain`",
        )
    return DomainDraft(spec=spec, xml=to_text(domain), placeholders=placeholders)


def _placeholders(spec: GuestSpec, direct_boot: DirectBoot | None) -> DomainPlan:
    """Return a plan of placeholders, which no machine has; it is always the same for one spec."""
    macs = _unused_macs(spec)
    disks = [
        DiskPlan(
            path=_FOLDER / f"disk{number}",
            format=disk.format if disk.file is None else "qcow2",
            bus=disk.bus,
            serial=disk.serial,
            readonly=disk.readonly,
        )
        for number, disk in enumerate(spec.disks, start=1)
    ]
    if direct_boot is not None:
        initrd = None if direct_boot.initrd is None else _FOLDER / "initrd"
        direct_boot = replace(direct_boot, kernel=_FOLDER / "kernel", initrd=initrd)
    return DomainPlan(
        name="pytest-kvm-placeholder-name",
        uuid="00000000-0000-4000-8000-000000000000",
        session="pytest-kvm-placeholder-session",
        owner_pid=1,
        owner_started=0.0,
        accel="tcg",
        disks=[
            DiskPlan(path=_FOLDER / "root.qcow2", format="qcow2"),
            *disks,
            DiskPlan(path=_FOLDER / "seed.iso", format="raw", readonly=True),
        ],
        control_mac=next(macs),
        nics=[
            NicPlan(index=index, nic=nic, mac=nic.mac or next(macs))
            for index, nic in enumerate(spec.nics)
            if nic.segment is None
        ],
        console_log=_FOLDER / "console.log",
        console_socket=_FOLDER / "console.sock",
        direct_boot=direct_boot,
        genid="00000000-0000-4000-8000-000000000001",
    )


def _unused_macs(spec: GuestSpec) -> Iterator[str]:
    """Yield MAC addresses that no card of the spec has."""
    given = {nic.mac.lower() for nic in spec.nics if nic.mac is not None}
    everyone = (f"02:70:79:00:{number >> 8:02x}:{number & 255:02x}" for number in range(1 << 16))
    return (mac for mac in everyone if mac not in given)


def _words(plan: DomainPlan) -> Iterator[str]:
    """Yield the words of a plan that are replaced wherever they stand; all plans of a spec have one order."""
    yield from (plan.name, plan.uuid, plan.session, plan.genid, plan.control_mac)
    yield from (nic.mac for nic in plan.nics)
    yield from (str(disk.path) for disk in plan.disks)
    yield from (
        str(plan.console_log),
        str(plan.firmware_log),
        str(plan.console_socket),
        str(plan.agent_socket),
    )
    if plan.direct_boot is not None:
        yield str(plan.direct_boot.kernel)
        if plan.direct_boot.initrd is not None:
            yield str(plan.direct_boot.initrd)
    yield str(plan.console_log.parent)
