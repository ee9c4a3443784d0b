"""Guests that are kept whole: what of them is found again, and what is refused."""

from __future__ import annotations

import json

import pytest

from pytest_kvm.errors import HostCommandFailed, NoCapacity, SavepointRefused, SnapshotFailed, SpecError
from pytest_kvm.host import disk_space
from pytest_kvm.images.qemu_img import create_blank, create_overlay
from pytest_kvm.machine import frozen_guest
from pytest_kvm.machine.frozen_guest import FrozenGuest, find_frozen, freeze

XML = """
<domain type='qemu' id='3'>
  <name>web</name>
  <memory unit='KiB'>524288</memory>
  <os><kernel>{folder}/images/blobs/{blob}</kernel><initrd>{folder}/initrd</initrd></os>
  <devices>
    <disk type='file'><driver type='qcow2'/><source file='{folder}/root.qcow2'/></disk>
    <disk type='file'><source file='{folder}/seed.iso'/><readonly/></disk>
    {more}
  </devices>
</domain>
"""
BLOB = "a" * 64


@pytest.fixture
def guest(tmp_path, domain, machine):
    """Return the machine of a guest that can be frozen."""

    def guest(more=""):
        text = XML.format(folder=tmp_path, blob=BLOB, more=more)
        domain.xml = lambda: text
        domain.qmp = lambda command: {"qemu": {"major": 7, "minor": 2, "micro": 22}}
        blobs = tmp_path / "images/blobs"
        blobs.mkdir(parents=True)
        create_blank(blobs / BLOB, size=1024**2)
        create_overlay(tmp_path / "root.qcow2", backing=blobs / BLOB)
        for name in ("seed.iso", "initrd", "key"):
            (tmp_path / name).write_text(name)
        machine.console.log.write_text("Linux\n")
        return machine

    return guest


@pytest.fixture
def folder(tmp_path):
    (folder := tmp_path / "web/frozen").mkdir(parents=True)
    return folder


def test_what_is_frozen_is_found_again(guest, folder, domain):
    freeze(guest(), folder)
    found = FrozenGuest.read(folder)
    assert domain.done == [f"take {found.snapshot}", f"drop {found.snapshot}"]
    assert (found.guest, found.qemu, found.image, found.login) == ("web", "7.2.22", "", "root")
    assert [(disk.files, disk.image) for disk in found.disks] == [
        (("disk0.qcow2",), BLOB), (("disk1.raw",), None)
    ]  # fmt: skip
    assert found.boot_files == {"kernel": BLOB, "initrd": None}
    assert found.from_store == {BLOB}
    assert found.files == ["initrd", "disk0.qcow2", "disk1.raw"]
    assert {path.name for path in folder.iterdir()} == {
        *found.files, "frozen.json", "domain.xml", "console.log", "id_ed25519"
    }  # fmt: skip


def test_the_snapshot_is_dropped_if_the_copy_fails(guest, folder, domain, monkeypatch):
    def copy_all(_layers, _targets):
        raise HostCommandFailed("cp: no room")

    monkeypatch.setattr(frozen_guest, "copy_all", copy_all)
    with pytest.raises(HostCommandFailed):
        freeze(guest(), folder)
    take, drop = domain.done
    assert (take.split()[0], drop.split()[0]) == ("take", "drop")
    assert take.split()[1] == drop.split()[1]


def test_a_snapshot_that_cannot_be_dropped_is_in_nobodys_way(guest, folder, domain):
    def drop_snapshot(name):
        raise SnapshotFailed(f"{name} stays")

    domain.drop_snapshot = drop_snapshot
    machine = guest()
    freeze(machine, folder)
    again = folder.with_name("again")
    again.mkdir()
    freeze(machine, again)
    assert FrozenGuest.read(folder).snapshot != FrozenGuest.read(again).snapshot


def test_disks_that_are_no_files_are_refused(guest, folder, domain):
    block = "<disk type='block'><source dev='/dev/loop0'/><target dev='vdc'/></disk>"
    with pytest.raises(SavepointRefused, match="web cannot be frozen with a disk that is no file: vdc"):
        freeze(guest(block), folder)
    assert domain.done == []


def test_cards_on_networks_of_the_host_are_refused(guest, folder, domain):
    card = "<interface type='bridge'><mac address='52:54:00:00:00:07'/></interface>"
    with pytest.raises(
        SavepointRefused, match="web cannot be frozen with a card on a network of the host .52:54:00:00:00:07"
    ):
        freeze(guest(card), folder)
    assert domain.done == []


def test_nothing_is_begun_without_room(guest, folder, domain, monkeypatch):
    monkeypatch.setattr(disk_space, "why_no_space", lambda place, *, mib: f"{mib} MiB in {place}")
    monkeypatch.setattr(frozen_guest, "memory_saved_mib", lambda pid: 100)
    with pytest.raises(NoCapacity, match="web is not frozen: 100 MiB in "):
        freeze(guest(), folder)
    assert domain.done == []


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"format": 2}, "has the format 2, not 1"),
        ({"guest": 3}, "3 is no text"),
        ({"qemu": "new"}, "'new' is no version"),
        ({"boot_files": {"kernel": "../x"}}, "'../x' is no SHA-256"),
        ({"boot_files": {"../../x": None}}, "'../../x' is nothing that a guest boots from"),
        ({"boot_files": [1]}, "cannot be read"),
        ({"frozen": "now"}, "cannot be read"),
        ({"frozen": 1e300}, "cannot be read"),
        ({"frozen": 0}, "0 is no time"),
        ({"disks": [{"files": [1], "formats": ["raw"], "image": None}]}, "1 is no text"),
        ({"disks": [{"files": ["a"], "formats": ["vmdk"], "image": None}]}, "is no disk"),
        ({"boot_files": {"nvram": None}}, "not complete: nvram is missing"),
        ({"disks": [{"files": [], "formats": [], "image": None}]}, "is no disk"),
        ({"disks": [{"files": ["/etc/motd"], "formats": ["raw"], "image": None}]}, "/etc/motd is missing"),
        ({"disks": [3]}, "cannot be read"),
        ({"more": 1}, "cannot be read"),
    ],
)  # fmt: skip
def test_manifests_that_cannot_be_right(guest, folder, change, said):
    freeze(guest(), folder)
    path = folder / "frozen.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(SpecError) as raised:
        FrozenGuest.read(folder)
    assert said in raised.value.brief
    assert str(folder) in raised.value.brief


@pytest.mark.parametrize("text", ["", "{", "[]", "\0", "[" * 100_000])
def test_manifests_that_are_none(folder, text):
    (folder / "frozen.json").write_text(text)
    with pytest.raises(SpecError, match="cannot be read"):
        FrozenGuest.read(folder)


def test_the_only_one_below_a_folder_is_found(folder, tmp_path):
    (folder / "frozen.json").touch()
    for named in (folder, folder.parent, tmp_path):
        assert find_frozen(named) == folder
    other = tmp_path / "in-teardown/web/frozen"
    other.mkdir(parents=True)
    (other / "frozen.json").touch()
    with pytest.raises(SpecError, match="several frozen guests") as raised:
        find_frozen(tmp_path)
    assert raised.value.details == f"{other}\n{folder}"
    with pytest.raises(SpecError, match="nowhere is no folder that you can read"):
        find_frozen(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(SpecError, match="there is no frozen guest in "):
        find_frozen(tmp_path / "empty")
