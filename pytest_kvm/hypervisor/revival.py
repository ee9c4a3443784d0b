"""A domain that goes on where a snapshot in its disks was taken, in a QEMU of its own.

Snapshots and domains are told to libvirt apart from each other: with
``VIR_DOMAIN_SNAPSHOT_CREATE_REDEFINE`` it takes our word that the disks hold
the snapshot (https://libvirt.org/formatsnapshot.html), and reverting to it
starts QEMU with it. All of this is libvirt's own interface: no monitor, no
descriptors. It takes about a second more than filling a started domain.
"""

from __future__ import annotations

import time
import xml.etree.ElementTree as ET

import libvirt

from pytest_kvm.errors import SnapshotFailed
from pytest_kvm.hypervisor.errors import translated

_FORGET = libvirt.VIR_DOMAIN_UNDEFINE_SNAPSHOTS_METADATA | libvirt.VIR_DOMAIN_UNDEFINE_KEEP_NVRAM
_REDEFINE = libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_REDEFINE | libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_CURRENT


def leave_snapshot(domain: libvirt.virDomain, name: str) -> None:
    """Write a snapshot into a running domain's disks, for :func:`revived` to start from copies of them.

    Raises:
        SnapshotFailed: A disk cannot hold one, or the guest has flash memory:
            libvirt knows of no way to include UEFI's variables before 10.9.
    """
    with translated(f"take the snapshot {name} of {domain.name()}", error=SnapshotFailed):
        root = ET.Element("domainsnapshot")
        ET.SubElement(root, "name").text = name
        domain.snapshotCreateXML(ET.tostring(root, encoding="unicode"), 0)


def revived(connection: libvirt.virConnect, xml: str, *, snapshot: str, paused: bool) -> libvirt.virDomain:
    """Start a domain from a snapshot that its disks hold, and return it.

    Only a persistent domain can have snapshots; it is one for as long as that
    takes. Undefined while it runs, it is transient again.
    """
    domain = connection.defineXML(xml)
    try:
        told = domain.snapshotCreateXML(_told(domain, snapshot), _REDEFINE)
        running = libvirt.VIR_DOMAIN_SNAPSHOT_REVERT_RUNNING
        domain.revertToSnapshot(told, libvirt.VIR_DOMAIN_SNAPSHOT_REVERT_PAUSED if paused else running)
    finally:
        domain.undefineFlags(_FORGET)
    return domain


def _told(domain: libvirt.virDomain, snapshot: str) -> str:
    """Return the snapshot's description; when it was taken is asked for and of no importance."""
    root = ET.Element("domainsnapshot")
    ET.SubElement(root, "name").text = snapshot
    ET.SubElement(root, "state").text = "running"
    ET.SubElement(root, "creationTime").text = str(int(time.time()))
    flags = libvirt.VIR_DOMAIN_XML_INACTIVE | libvirt.VIR_DOMAIN_XML_SECURE
    root.append(ET.fromstring(domain.XMLDesc(flags)))  # noqa: S314 - libvirt wrote it
    return ET.tostring(root, encoding="unicode")
