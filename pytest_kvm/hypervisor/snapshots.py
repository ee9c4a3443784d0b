"""Snapshots of memory, devices and disks together, which are stored in the domain's own disks.

QEMU's jobs ``snapshot-save``, ``snapshot-load`` and ``snapshot-delete``
(https://www.qemu.org/docs/master/interop/qemu-qmp-ref.html) do what ``savevm``
does, in the same time, but only for the disks that their arguments name. QEMU
does nothing else while a job runs. libvirt's own call to load a snapshot is not
used in a running domain, because it would end QEMU and start another.
"""

from __future__ import annotations

import threading
import time
import xml.etree.ElementTree as ET
from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

import libvirt

from pytest_kvm.errors import DomainFailed, SavepointRefused, SnapshotFailed
from pytest_kvm.hypervisor.libvirt_errors import from_libvirt
from pytest_kvm.waiting import NotYet, wait_until

if TYPE_CHECKING:
    from pytest_kvm.hypervisor.protocol import Domain

_JOB = "kvm-snapshot"
_WITHIN = 600.0
"""Longest time for one job, in seconds. Nearly all of it is for writing or reading the guest's memory."""
_LOOK_EVERY = 0.005
"""Seconds between two looks at a job. QEMU answers the first look only when the job is done,
so a second one is hardly ever needed."""
_FLASH = "cfi.pflash01"
_PLUGGED = ("/machine/peripheral", "/machine/peripheral-anon")
"""Paths in QEMU's object model of all devices: those of the command line and those plugged in later."""
_FORGET = libvirt.VIR_DOMAIN_UNDEFINE_SNAPSHOTS_METADATA | libvirt.VIR_DOMAIN_UNDEFINE_KEEP_NVRAM
_REDEFINE = libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_REDEFINE | libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_CURRENT


class Snapshots:
    """Takes, loads and drops the snapshots of one domain.

    Snapshots do not depend on each other: each can be loaded or dropped at any time.

    Args:
        domain: The domain.
    """

    def __init__(self, domain: Domain) -> None:
        self._domain = domain
        self._lock = threading.Lock()
        self._devices_then: dict[str, frozenset[str]] = {}
        """By snapshot, the devices that the domain had when it was taken."""

    def take(self, name: str) -> None:
        """Write memory, devices and disks into the disks; see :meth:`Domain.take_snapshot`."""
        with self._lock:
            disks = self._disks()
            devices = self._devices()
            self._run("snapshot-save", {"tag": name, "vmstate": disks[0], "devices": disks})
            self._devices_then[name] = devices

    def check(self, name: str) -> None:
        """Check that the guest has the devices of a snapshot's time; see :meth:`Domain.check_snapshot`."""
        then = self._devices_then.get(name)
        if then is not None:
            self._check_devices(name, then)

    def load(self, name: str) -> None:
        """Put memory, devices and disks back, and pause the guest; see :meth:`Domain.load_snapshot`."""
        with self._lock:
            self.check(name)
            disks = self._disks()
            if self._domain.qmp("query-status")["running"]:
                self._domain.suspend()  # after the load QEMU runs or is paused as before
            self._run("snapshot-load", {"tag": name, "vmstate": disks[0], "devices": disks})

    def drop(self, name: str) -> None:
        """Free the space that a snapshot occupies; see :meth:`Domain.drop_snapshot`."""
        with self._lock:
            self._run("snapshot-delete", {"tag": name, "devices": self._disks()})
            self._devices_then.pop(name, None)

    # ------------------------------------------------------------ disks and devices

    def _disks(self) -> list[str]:
        """Return QEMU's names of the disks that snapshots are written to, the root disk first.

        The flash that holds UEFI's variables is raw and writable, but needs no
        snapshot. Its contents are saved with the memory, and QEMU writes them
        back to the flash's file after it has loaded the memory
        (``pflash_post_load()`` in QEMU's ``hw/block/pflash_cfi01.c``).

        Raises:
            SavepointRefused: A writable disk is not qcow2, or there is no writable qcow2 disk.
        """
        media = [
            (block["qdev"], block["inserted"])
            for block in self._domain.qmp("query-block")
            if "qdev" in block and "inserted" in block and not block["inserted"]["ro"]
        ]
        others = [
            f"{medium['file']} ({medium['drv']})"
            for device, medium in media
            if medium["drv"] != "qcow2" and not self._is_flash(device)
        ]
        if others:
            raise SavepointRefused(
                f"{self._domain.name}: no snapshot is possible with {', '.join(others)}",
                resolution='only qcow2 holds snapshots: leave out Disk(format="raw"), or make it read-only',
            )
        disks = [str(medium["node-name"]) for _, medium in media if medium["drv"] == "qcow2"]
        if not disks:
            raise SavepointRefused(
                f"{self._domain.name}: no snapshot is possible without a disk to write it to",
                resolution="give the guest a writable qcow2 disk",
            )
        return disks

    def _is_flash(self, device: str) -> bool:
        return bool(self._domain.qmp("qom-get", {"path": device, "property": "type"}) == _FLASH)

    def _devices(self) -> frozenset[str]:
        """Return all devices by id and type, and the file of each disk."""
        plugged = [
            f"{child['name']} ({child['type'].removeprefix('child<').removesuffix('>')})"
            for path in _PLUGGED
            for child in self._domain.qmp("qom-list", {"path": path})
            if child["type"].startswith("child<")
        ]
        disks = [
            f"the disk {block['inserted']['file']}"
            for block in self._domain.qmp("query-block")
            if "inserted" in block
        ]
        return frozenset([*plugged, *disks])

    def _check_devices(self, name: str, then: frozenset[str]) -> None:
        """Raise an error if the devices have changed: QEMU would fail half-way and ruin the guest."""
        now = self._devices()
        if now == then:
            return
        changes = [f"plugged in since: {device}" for device in sorted(now - then)]
        changes += [f"unplugged since: {device}" for device in sorted(then - now)]
        raise SavepointRefused(
            f"{self._domain.name}: cannot go back to {name}: the guest has other devices now",
            details="\n".join(changes),
            resolution="undo these changes first, or take the savepoint after them",
        )

    # ------------------------------------------------------------ jobs

    def _run(self, command: str, arguments: Mapping[str, Any]) -> None:
        try:
            self._domain.qmp(command, {"job-id": _JOB, **arguments})
            problem = wait_until(
                partial(self._job_error, command),
                describe=f"{command} of {self._domain.name}",
                timeout=_WITHIN,
                every=_LOOK_EVERY,
                error=SnapshotFailed,
            )
            self._domain.qmp("job-dismiss", {"id": _JOB})
        except DomainFailed as failure:
            raise SnapshotFailed(
                f"{command} of {self._domain.name}: {failure.brief}", details=failure.details
            ) from failure
        if problem:
            raise SnapshotFailed(
                f"QEMU of {self._domain.name} failed at {command} {arguments['tag']}: {problem}"
            )

    def _job_error(self, command: str) -> str:
        """Return the job's error, empty if it has none."""
        for job in self._domain.qmp("query-jobs"):
            if job["id"] == _JOB and job["status"] != "concluded":
                raise NotYet(f"{command} is {job['status']}")
            if job["id"] == _JOB:
                return str(job.get("error", ""))
        raise SnapshotFailed(f"QEMU of {self._domain.name} has lost its job {command}")


def save_libvirt_snapshot(domain: libvirt.virDomain, name: str) -> None:
    """Write a snapshot into a running domain's disks: :func:`start_from_snapshot` starts from copies of them.

    Raises:
        SnapshotFailed: A disk cannot hold a snapshot, or the guest has flash
            memory: libvirt before 10.9 cannot include UEFI's variables.
    """
    root = ET.Element("domainsnapshot")
    ET.SubElement(root, "name").text = name
    try:
        domain.snapshotCreateXML(ET.tostring(root, encoding="unicode"), 0)
    except libvirt.libvirtError as failure:
        error = from_libvirt(failure, doing=f"take the snapshot {name} of {domain.name()}")
        if isinstance(error, DomainFailed):  # it has ended
            raise error from None
        raise SnapshotFailed(error.brief, details=error.details) from None


def start_from_snapshot(
    connection: libvirt.virConnect, xml: str, *, snapshot: str, paused: bool
) -> libvirt.virDomain:
    """Start a domain from a snapshot that its disks hold, and return it.

    First the domain is defined, then the snapshot. With
    ``VIR_DOMAIN_SNAPSHOT_CREATE_REDEFINE`` libvirt takes no snapshot, but
    believes that the disks hold it already
    (https://libvirt.org/formatsnapshot.html). Reverting to the snapshot starts
    QEMU from it. This needs neither QEMU's monitor nor descriptors, and takes
    about a second longer than loading a state file into a started domain.

    Only a persistent domain can have snapshots, so the domain is persistent
    during the start. Undefining it while it runs makes it transient again.
    """
    domain = connection.defineXML(xml)
    try:
        told = domain.snapshotCreateXML(_redefinition(domain, snapshot), _REDEFINE)
        running = libvirt.VIR_DOMAIN_SNAPSHOT_REVERT_RUNNING
        domain.revertToSnapshot(told, libvirt.VIR_DOMAIN_SNAPSHOT_REVERT_PAUSED if paused else running)
    finally:
        domain.undefineFlags(_FORGET)
    return domain


def _redefinition(domain: libvirt.virDomain, snapshot: str) -> str:
    """Return the snapshot's XML; libvirt demands a creation time, but its value does not matter."""
    root = ET.Element("domainsnapshot")
    ET.SubElement(root, "name").text = snapshot
    ET.SubElement(root, "state").text = "running"
    ET.SubElement(root, "creationTime").text = str(int(time.time()))
    flags = libvirt.VIR_DOMAIN_XML_INACTIVE | libvirt.VIR_DOMAIN_XML_SECURE
    root.append(ET.fromstring(domain.XMLDesc(flags)))  # noqa: S314 - libvirt wrote it
    return ET.tostring(root, encoding="unicode")
