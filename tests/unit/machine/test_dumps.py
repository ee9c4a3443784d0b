"""Dumps of a guest: what is kept, and that the guest goes on as it was."""

from __future__ import annotations

import pytest

from pytest_kvm.errors import DomainFailed, SnapshotFailed
from pytest_kvm.host import disk_space
from pytest_kvm.host.artifact_folder import ArtifactFolder
from pytest_kvm.hypervisor.protocol import DomainState
from pytest_kvm.images.qemu_img import create_blank
from pytest_kvm.machine import dumps
from pytest_kvm.machine.dumps import keep_dumps

ALL = ("memory", "disk", "guest")


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "test").mkdir()
    return ArtifactFolder(tmp_path / "test/web")


@pytest.fixture
def guest(tmp_path, domain, machine):
    """The machine of a guest with one disk that it can write to."""
    create_blank(tmp_path / "root.qcow2", size=1024**2)
    (tmp_path / "seed.iso").touch()
    disks = [f"<disk>{{}}<source file='{tmp_path}/{name}'/></disk>" for name in ("root.qcow2", "seed.iso")]
    first, second = disks[0].format("<driver type='qcow2'/>"), disks[1].format("<readonly/>")
    xml = f"<domain><devices>{first}{second}</devices></domain>"
    domain.xml = lambda: xml
    domain.qmp = lambda command: {"base-memory": 1024**2}
    return machine


@pytest.fixture(autouse=True)
def frozen(monkeypatch):
    """Note in what state guests are frozen."""
    states = []

    def freeze(machine, folder):
        states.append(machine.domain.state())
        (folder / "frozen.json").touch()

    monkeypatch.setattr(dumps, "freeze", freeze)
    return states


def test_all_of_one_moment(guest, folder, domain, frozen):
    keep_dumps(guest, folder, what=ALL)
    assert folder.files == ["memory/", "disks/", "frozen/"]
    assert folder.missing == []
    assert (folder.path / "memory/memory.elf").read_bytes() == b"memory of web"
    assert [path.name for path in (folder.path / "disks").iterdir()] == ["disk0.qcow2"]
    assert domain.done == ["suspend", "resume"]
    assert frozen == [DomainState.PAUSED]
    paths = [folder.path, *folder.path.rglob("*")]
    assert [path for path in paths if path.stat().st_mode & 0o077] == []


@pytest.mark.parametrize(("kind", "file"), [("memory", "memory/"), ("disk", "disks/"), ("guest", "frozen/")])
def test_only_what_is_asked_for(guest, folder, kind, file):
    keep_dumps(guest, folder, what={kind})
    assert folder.files == [file]
    assert [path.name for path in folder.path.iterdir()] == [file[:-1]]


def test_a_paused_guest_stays_paused(guest, folder, domain):
    domain.suspend()
    keep_dumps(guest, folder, what=ALL)
    assert domain.done == ["suspend"]
    assert domain.state() is DomainState.PAUSED


def test_only_the_disks_of_one_that_has_ended(guest, folder, domain):
    domain.end("QEMU died")
    keep_dumps(guest, folder, what=ALL)
    assert folder.files == ["disks/"]
    assert folder.missing == ["memory: web has ended: QEMU died", "frozen: web has ended: QEMU died"]


def test_what_fails_leaves_nothing_and_keeps_nothing_else(guest, folder, domain, monkeypatch):
    def dump_memory(target):
        target.write_text("half")
        raise DomainFailed("web: the disk is full")

    def freeze(_machine, _folder):
        raise SnapshotFailed("web: a device is in the way")

    domain.dump_memory = dump_memory
    monkeypatch.setattr(dumps, "freeze", freeze)
    keep_dumps(guest, folder, what=ALL)
    assert folder.files == ["disks/"]
    assert folder.missing == ["memory: web: the disk is full", "frozen: web: a device is in the way"]
    assert [path.name for path in folder.path.iterdir()] == ["disks"]
    assert domain.done == ["suspend", "resume"]


def test_one_that_ends_meanwhile(guest, folder, domain):
    def dump_memory(_target):
        domain.end("QEMU died")
        raise DomainFailed("web has ended: QEMU died")

    domain.dump_memory = dump_memory
    keep_dumps(guest, folder, what=ALL)
    assert folder.files == ["disks/"]
    assert [line.partition(":")[0] for line in folder.missing] == ["memory", "frozen"]


def test_a_dump_without_room(guest, folder, monkeypatch):
    monkeypatch.setattr(disk_space, "why_no_space", lambda place, *, mib: f"{mib} MiB are needed")
    keep_dumps(guest, folder, what=("memory", "disk"))
    assert folder.files == []
    assert folder.missing == [
        "memory: no room for the memory of web: 65 MiB are needed",
        "disks: no room for the disks of web: 64 MiB are needed",
    ]


def test_an_error_of_ours_leaves_nothing_either(guest, folder, domain):
    domain.qmp = lambda command: {}
    with pytest.raises(KeyError):
        keep_dumps(guest, folder, what=ALL)
    assert domain.done == ["suspend", "resume"]
    assert list(folder.path.iterdir()) == []


def test_one_that_ends_just_before_it_is_paused(guest, folder, domain):
    def suspend():
        domain.end("QEMU died")
        raise DomainFailed("web has ended: QEMU died")

    domain.suspend = suspend
    keep_dumps(guest, folder, what=ALL)
    assert folder.files == ["disks/"]


def test_one_that_cannot_be_paused(guest, folder, domain):
    def suspend():
        raise DomainFailed("web: libvirt is busy")

    domain.suspend = suspend
    with pytest.raises(DomainFailed, match="busy"):
        keep_dumps(guest, folder, what=ALL)
    assert not folder.path.exists()


def test_disks_that_are_no_files_are_told(guest, folder, domain):
    block = "<disk type='block'><source dev='/dev/loop0'/><target dev='vdc'/></disk>"
    xml = domain.xml().replace("</devices>", f"{block}</devices>")
    domain.xml = lambda: xml
    keep_dumps(guest, folder, what={"disk"})
    assert folder.missing == ["disks: web has a disk that cannot be copied, as it is no file: vdc"]
