"""What those who start guests do: claim, make, drop."""

from __future__ import annotations

import errno
import shutil
import stat
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest

from pytest_kvm.boot_cache import template_files
from pytest_kvm.boot_cache.template_store import TemplateStore
from pytest_kvm.errors import NoCapacity, SnapshotFailed, StateDamaged
from tests.unit.boot_cache.conftest import FACTS, FILES, KEY, OTHER


def test_what_is_published_can_be_claimed(store, make):
    assert store.claim(KEY) is None
    make()
    with store.claim(KEY) as template:
        assert template.key == KEY
        assert {name: template.path(name).read_bytes() for name in template.manifest.files} == FILES
        assert template.manifest.facts == FACTS
        assert template.manifest.versions == {"qemu": "7.2"}
    assert store.claim(OTHER) is None


def test_who_publishes_has_claimed(store, inventory):
    with store.building(KEY) as building:
        building.folder.joinpath("state").write_bytes(b"devices")
        made = building.publish(summary="", versions={}, facts={})
    (info,) = inventory.list()
    assert info.in_use
    made.close()
    (info,) = inventory.list()
    assert not info.in_use


def test_several_use_a_template_at_once(store, make):
    make()
    with store.claim(KEY) as one, store.claim(KEY) as other:
        assert one.folder == other.folder


def test_a_template_has_no_other_files(store, make):
    make()
    with store.claim(KEY) as template, pytest.raises(KeyError):
        template.path("manifest.json")


def test_paths_stay_when_a_template_is_published(store):
    with store.building(KEY) as building:
        (building.folder / "state").write_bytes(b"devices")
        with building.publish(summary="", versions={}, facts={}) as template:
            assert template.folder == building.folder


@pytest.mark.parametrize("place", ["disk", "tmpfs"])
def test_what_was_made_can_be_thrown_away_to_begin_anew(settings, place):
    store = TemplateStore.of(replace(settings, cache_ram=place))
    with store.building(KEY) as building:
        for path in (building.folder / "state", building.ram):
            path.write_bytes(b"of the first attempt")
        building.clear()
        assert not building.ram.exists() or building.ram.stat().st_size == 0
        assert building.ram.is_symlink() == (place == "tmpfs")
        building.ram.write_bytes(b"memory")
        with building.publish(summary="", versions={}, facts={}) as template:
            assert list(template.manifest.files) == ["ram"]


def test_files_that_somebody_has_removed_are_named(store, make):
    folder = make()
    with store.claim(KEY) as template:
        template.check_is_there()
        (folder / "ram").unlink()
        (folder / "state").unlink()
        with pytest.raises(StateDamaged, match="somebody has removed files of the template: ram, state"):
            template.check_is_there()
        shutil.rmtree(folder)
    make()
    with store.claim(KEY) as template:
        template.check_is_there()


def test_nobody_else_may_read_a_template(store, make):
    folder = make()
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert {stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()} == {0o600}


def test_what_is_not_published_leaves_nothing(store, inventory):
    with store.building(KEY) as building:
        (building.folder / "ram").write_bytes(b"half")
    assert not building.folder.exists()
    with pytest.raises(ZeroDivisionError), store.building(KEY) as building:
        (building.folder / "ram").write_bytes(b"%d" % (1 // 0))
    assert not building.folder.exists()
    assert store.claim(KEY) is None
    assert inventory.list() == ()


def test_a_new_template_replaces_the_old_and_leaves_it_to_its_users(store, make):
    old = make(state=b"old")
    template = store.claim(KEY)
    new = make(state=b"new")
    assert template.path("state").read_bytes() == b"old"
    with store.claim(KEY) as now:
        assert now.folder == new
        assert now.path("state").read_bytes() == b"new"
    template.close()
    assert not old.exists()


def test_a_dropped_template_stays_with_its_users(store, make, caplog):
    folder = make()
    template = store.claim(KEY)
    store.discard(KEY, reason="QEMU refused its state")
    assert "QEMU refused its state" in caplog.text
    assert store.claim(KEY) is None
    assert template.path("state").read_bytes() == b"devices"
    template.close()
    template.close()
    assert not folder.exists()


def test_dropping_what_is_not_there_is_nothing(store, caplog):
    store.discard(KEY, reason="QEMU refused its state")
    assert "dropped" not in caplog.text


@pytest.mark.parametrize("key", ["", "..", "../evil", "a/b", "short", "5CA1AB1E" * 8, "g" * 64, "a" * 129])
def test_a_key_is_never_a_path(store, key):
    with pytest.raises(ValueError, match="not a template's key"):
        store.claim(key)
    with pytest.raises(ValueError, match="not a template's key"), store.building(key):
        pass
    with pytest.raises(ValueError, match="not a template's key"):
        store.discard(key, reason="")


# ---------------------------------------------------------------- no room


def freeze_onto_a_full_disk(store):
    with store.disk_full_as_no_capacity(), store.building(KEY) as building:
        building.ram.symlink_to("/dev/full")
        building.ram.write_bytes(b"memory")


def test_a_disk_that_fills_up_while_the_guest_is_frozen(store, inventory, settings):
    with pytest.raises(NoCapacity, match="no room for a template") as failure:
        freeze_onto_a_full_disk(store)
    assert "pytest-kvm cache gc" in failure.value.resolution
    assert list((settings.cache_dir / "templates/entries").iterdir()) == []
    assert inventory.list() == ()


@pytest.mark.parametrize("step", ["sync", "write"])
def test_a_disk_that_fills_up_while_the_template_is_published(store, make, monkeypatch, step):
    old = make(state=b"old")

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(template_files, step, full)
        with pytest.raises(NoCapacity, match="No space left on device"), store.disk_full_as_no_capacity():
            make(state=b"new")
    with store.claim(KEY) as template:
        assert template.folder == old
    assert list(old.parent.iterdir()) == [old]


def test_a_disk_without_room_for_the_stores_own_folders(store, settings, monkeypatch):
    def find_no_room(path, **_options):
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    monkeypatch.setattr(Path, "mkdir", find_no_room)
    with (
        pytest.raises(NoCapacity, match="no room for a template: No space left on device"),
        store.disk_full_as_no_capacity(),
        store.building(KEY),
    ):
        raise ZeroDivisionError


def test_a_cache_that_is_gone_is_not_made_again(store, settings, make):
    make()
    template = store.claim(KEY)
    shutil.rmtree(settings.cache_dir)
    template.close()
    assert not settings.cache_dir.exists()


def test_other_errors_stay_what_they_are(store):
    with pytest.raises(FileNotFoundError), store.disk_full_as_no_capacity(), store.building(KEY) as building:
        (building.folder / "nothing").read_bytes()


def say_free(monkeypatch, disk_free_mib):
    for module in ("boot_cache.template_store", "host.disk_space"):
        monkeypatch.setattr(f"pytest_kvm.{module}.disk_free_mib", disk_free_mib)


def test_room_is_made_for_a_ram_file(store, inventory, make, monkeypatch):
    make(OTHER, used=1)
    free = [10, 600]
    say_free(monkeypatch, lambda _: free.pop(0))
    with store.building(KEY, ram_mib=512, disk_mib=64):
        assert inventory.list() == ()


def test_no_guest_is_frozen_where_its_ram_has_no_room(store, make, monkeypatch):
    make(OTHER)
    say_free(monkeypatch, lambda _: 550)
    failing = pytest.raises(NoCapacity, match="576 MiB are needed .* 550 MiB are free")
    with store.claim(OTHER), failing, store.building(KEY, ram_mib=512, disk_mib=64):
        pytest.fail("there is no room")
    with store.claim(OTHER) as template:
        assert template.key == OTHER


def test_a_file_that_is_still_written_to_is_not_published(store, monkeypatch):
    def written_meanwhile(path: Path) -> str:
        path.write_bytes(b"more and more")
        return "0"

    monkeypatch.setattr(template_files, "sparse_digest", written_meanwhile)
    with store.building(KEY) as building:
        (building.folder / "state").write_bytes(b"devices")
        with pytest.raises(SnapshotFailed, match="state changes while it is read"):
            building.publish(summary="", versions={}, facts={})
    assert store.claim(KEY) is None


def test_a_claim_that_is_interrupted_lets_go(store, inventory, make, monkeypatch):
    make()

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, suppress(KeyboardInterrupt):
        patched.setattr(template_files, "read_checked", interrupted)
        store.claim(KEY)
    (info,) = inventory.list()
    assert not info.in_use
