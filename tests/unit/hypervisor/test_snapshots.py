"""Snapshots, on a monitor that knows QEMU 7.2's answers."""

from __future__ import annotations

from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import libvirt
import pytest

from pytest_kvm.errors import DomainFailed, SavepointRefused, SnapshotFailed
from pytest_kvm.hypervisor.snapshots import Snapshots, save_libvirt_snapshot
from tests.fakes import FakeDomain

JOB = "kvm-snapshot"


def disk(name: str, *, fmt: str = "qcow2", ro: bool = False, qdev: str = "") -> dict[str, Any]:
    return {
        "device": "",
        "qdev": qdev or f"/machine/peripheral/{name}/virtio-backend",
        "inserted": {"node-name": f"{name}-format", "drv": fmt, "ro": ro, "file": f"/run/{name}.{fmt}"},
    }


ROOT, DATA = disk("root"), disk("data")
SEED = disk("seed", fmt="raw", ro=True)
CODE = disk("code", fmt="raw", ro=True, qdev="/machine/system.flash0")
VARIABLES = disk("vars", fmt="raw", qdev="/machine/system.flash1")
EMPTY_DRIVE = {"device": "", "qdev": "/machine/peripheral/cdrom"}
NO_DEVICE = {"device": "mirror", "inserted": {"node-name": "m", "drv": "raw", "ro": False, "file": "/m"}}


@dataclass
class Monitor(FakeDomain):
    """A domain with a monitor; jobs end when they are looked at for the second time."""

    media: list[dict[str, Any]] = field(default_factory=lambda: [ROOT, SEED])
    devices: dict[str, str] = field(default_factory=lambda: {"root": "virtio-blk-pci"})
    running: bool = True
    error: str = ""
    ran: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    jobs: list[dict[str, Any]] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__("web")

    def qmp(self, command, arguments=None):
        if command.startswith("snapshot-"):
            self.ran.append((command, {**arguments, "job-id": None}))
            self.jobs = [{"id": "other", "status": "running"}, {"id": JOB, "status": "running"}]
            assert arguments["job-id"] == JOB
            return {}
        return getattr(self, "_" + command.replace("-", "_"))(arguments)

    def _query_block(self, _):
        return self.media

    def _query_status(self, _):
        return {"running": self.running}

    def _qom_get(self, arguments):
        assert arguments["property"] == "type"
        return "cfi.pflash01" if "flash" in arguments["path"] else "virtio-blk-device"

    def _qom_list(self, arguments):
        if arguments["path"] == "/machine/peripheral-anon":
            return [{"name": "device[0]", "type": "child<vmcoreinfo>"}]
        plugged = [{"name": name, "type": f"child<{kind}>"} for name, kind in self.devices.items()]
        return [{"name": "type", "type": "string"}, *plugged]

    def _query_jobs(self, _):
        told = [dict(job) for job in self.jobs]
        ended = {"status": "concluded"} | ({"error": self.error} if self.error else {})
        self.jobs = [job | ended for job in self.jobs]
        return told

    def _job_dismiss(self, arguments):
        self.jobs = [job for job in self.jobs if job["id"] != arguments["id"]]


@pytest.fixture
def monitor():
    return Monitor()


@pytest.fixture
def snapshots(monitor):
    return Snapshots(monitor)


def job(command, *disks, vmstate=None):
    named = {"tag": "s", "devices": list(disks), "job-id": None}
    return (command, named | ({"vmstate": vmstate} if vmstate else {}))


def test_all_writable_disks_take_part_and_the_first_holds_the_memory(snapshots, monitor):
    monitor.media = [CODE, VARIABLES, EMPTY_DRIVE, NO_DEVICE, ROOT, SEED, DATA]
    snapshots.take("s")
    snapshots.load("s")
    snapshots.drop("s")
    both = ("root-format", "data-format")
    assert monitor.ran == [
        job("snapshot-save", *both, vmstate="root-format"),
        job("snapshot-load", *both, vmstate="root-format"),
        job("snapshot-delete", *both),
    ]
    assert [each["id"] for each in monitor.jobs] == ["other"]


@pytest.mark.parametrize("call", [Snapshots.take, Snapshots.load, Snapshots.drop])
def test_a_disk_that_holds_none_is_named(monitor, call):
    monitor.media = [ROOT, disk("data", fmt="raw"), disk("more", fmt="vmdk")]
    with pytest.raises(SavepointRefused, match=r"with /run/data\.raw \(raw\), /run/more\.vmdk \(vmdk\)"):
        call(Snapshots(monitor), "s")
    assert monitor.ran == []


def test_without_a_disk_there_is_nowhere_to_write_to(snapshots, monitor):
    monitor.media = [SEED, VARIABLES]
    with pytest.raises(SavepointRefused, match="without a disk"):
        snapshots.take("s")


@pytest.mark.parametrize("command", ["save", "load", "delete"])
def test_what_qemu_says_of_a_failure_is_told_and_the_job_removed(snapshots, monitor, command):
    calls = {"save": snapshots.take, "load": snapshots.load, "delete": snapshots.drop}
    monitor.error = "No space left on device"
    with pytest.raises(SnapshotFailed, match=f"web failed at snapshot-{command} s: No space left on device"):
        calls[command]("s")
    assert [each["id"] for each in monitor.jobs] == ["other"]


def test_a_job_that_vanishes_is_no_success(snapshots, monitor):
    monitor._query_jobs = lambda _: []
    with pytest.raises(SnapshotFailed, match="lost its job snapshot-save"):
        snapshots.take("s")


@pytest.mark.parametrize(("running", "done"), [(True, ["suspend"]), (False, [])])
def test_the_guest_is_paused_after_a_load(snapshots, monitor, running, done):
    snapshots.take("s")
    monitor.running = running
    snapshots.load("s")
    assert monitor.done == done


def test_other_devices_are_named_before_anything_is_done(snapshots, monitor):
    snapshots.take("s")
    monitor.devices = {"root": "virtio-blk-pci", "late": "qemu-xhci"}
    monitor.media = [DATA, SEED]
    monitor.ran.clear()
    with pytest.raises(SavepointRefused, match="cannot go back to s") as refusal:
        snapshots.load("s")
    assert refusal.value.details.splitlines() == [
        "plugged in since: late (qemu-xhci)",
        "plugged in since: the disk /run/data.qcow2",
        "unplugged since: the disk /run/root.qcow2",
    ]
    assert monitor.ran == []


def test_a_failed_save_leaves_nothing_to_compare_with(snapshots, monitor):
    monitor.error = "no"
    with pytest.raises(SnapshotFailed):
        snapshots.take("s")
    monitor.error, monitor.devices = "", {}
    snapshots.load("s")
    assert monitor.ran[-1][0] == "snapshot-load"


def test_what_the_disks_brought_along_can_be_loaded(snapshots, monitor):
    snapshots.load("s")
    assert monitor.ran == [job("snapshot-load", "root-format", vmstate="root-format")]


@pytest.mark.parametrize(
    ("code", "error"),
    [
        (libvirt.VIR_ERR_OPERATION_UNSUPPORTED, SnapshotFailed),
        (libvirt.VIR_ERR_INTERNAL_ERROR, SnapshotFailed),
        (libvirt.VIR_ERR_NO_DOMAIN, DomainFailed),
    ],
)
def test_a_guest_of_which_libvirt_takes_no_snapshot(code, error):
    def refuse(_xml, _flags):
        failure = libvirt.libvirtError("call failed")
        failure.err = (code, libvirt.VIR_FROM_QEMU, "not of flash memory", 2, None, None, None, 0, 0)
        raise failure

    domain: Any = SimpleNamespace(name=lambda: "web", snapshotCreateXML=refuse)
    with pytest.raises(error, match="take the snapshot s of web: not of flash memory") as raised:
        save_libvirt_snapshot(domain, "s")
    assert "use qemu:///embed" not in str(raised.value)
