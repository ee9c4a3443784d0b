"""Damage is noticed, dropped and told; what only looks different is believed again."""

from __future__ import annotations

import os
import shutil
import subprocess

import pytest

from pytest_kvm.boot_cache import template_files
from pytest_kvm.boot_cache.template_files import sparse_digest
from tests.unit.boot_cache.conftest import FILES, KEY

EVERY_FILE = [*FILES, "manifest.json"]


def flip(path):
    with path.open("r+b") as file:
        file.seek(path.stat().st_size // 2)
        byte = file.read(1)
        file.seek(-1, 1)
        file.write(bytes([byte[0] ^ 1]))


def truncate(path):
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size // 2)


def empty(path):
    path.write_bytes(b"")


def remove(path):
    path.unlink()


def turn_into_a_folder(path):
    path.unlink()
    path.mkdir()


DAMAGES = [flip, truncate, empty, remove, turn_into_a_folder]


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda each: each.__name__)
@pytest.mark.parametrize("name", EVERY_FILE)
def test_a_damaged_template_is_dropped_and_made_again(store, make, caplog, name, damage):
    folder = make()
    damage(folder / name)
    told: list[str] = []
    assert store.claim(KEY, on_discard=told.append) is None
    assert len(told) == 1
    assert name in told[0] or (name == "manifest.json" and "manifest" in told[0])
    assert told[0] in caplog.text
    assert not folder.exists()
    make()
    store.claim(KEY, on_discard=told.append).close()
    assert len(told) == 1


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda each: each.__name__)
@pytest.mark.parametrize("name", EVERY_FILE)
def test_verify_says_what_is_damaged_and_changes_nothing(inventory, make, name, damage):
    folder = make()
    assert inventory.verify([KEY]) == ()
    damage(folder / name)
    (problem,) = inventory.verify([KEY])
    assert problem.key == KEY
    assert name in problem.what or "manifest" in problem.what
    assert folder.exists()


def test_damage_that_hides_behind_the_old_times_is_found_by_verify(inventory, make, monkeypatch):
    """A claim looks at sizes and times only: bits that rot on the disk are for ``verify``."""
    folder = make()
    flip(folder / "ram")
    monkeypatch.setattr(template_files, "_is_untouched", lambda *_: True)
    (problem,) = inventory.verify([KEY])
    assert problem.what == "ram is not what was written"


def test_the_manifest_of_another_template_is_not_believed(store, make):
    other = make("0ddba11" + "0" * 57)
    folder = make()
    shutil.copy(other / "manifest.json", folder / "manifest.json")
    told: list[str] = []
    assert store.claim(KEY, on_discard=told.append) is None
    assert "manifest is that of 0ddba11" in told[0]


def test_a_template_without_its_lock_is_none(store, make):
    folder = make()
    (folder / "used").unlink()
    assert store.claim(KEY) is None
    make()
    assert not folder.exists()


def test_a_link_that_leads_nowhere_is_no_template(store, inventory, make):
    folder = make()
    shutil.rmtree(folder)
    assert store.claim(KEY) is None
    assert inventory.list() == ()
    inventory.collect(cap=0)
    assert list((folder.parent.parent / "current").iterdir()) == []


def test_nobody_waits_for_a_pipe(store, make):
    folder = make(empty=b"")
    (folder / "empty").unlink()
    os.mkfifo(folder / "empty")
    told: list[str] = []
    assert store.claim(KEY, on_discard=told.append) is None
    assert told == ["empty is no regular file"]


# ---------------------------------------------------------------- restored from an archive


@pytest.fixture
def reads(monkeypatch):
    """Names of the files that are read for their digest."""
    names: list[str] = []

    def noted(path):
        names.append(path.name)
        return sparse_digest(path)

    monkeypatch.setattr(template_files, "sparse_digest", noted)
    return names


def test_what_was_not_touched_is_not_read(store, make, reads):
    make()
    reads.clear()
    store.claim(KEY).close()
    assert reads == []


def test_a_cache_that_was_packed_and_unpacked_is_read_once(store, make, settings, tmp_path, reads):
    folder = make()
    archive = tmp_path / "cache.tar"
    subprocess.run(["tar", "-cf", archive, "-C", settings.cache_dir, "."], check=True)
    shutil.rmtree(settings.cache_dir)
    settings.cache_dir.mkdir()
    subprocess.run(["tar", "-xf", archive, "-C", settings.cache_dir], check=True)
    reads.clear()
    with store.claim(KEY) as template:
        assert template.folder == folder
        assert {name: template.path(name).read_bytes() for name in FILES} == FILES
    assert sorted(reads) == sorted(FILES)
    reads.clear()
    store.claim(KEY).close()
    assert reads == []


def test_a_cache_that_cannot_be_written_to_is_read_every_time(store, make, reads, monkeypatch):
    folder = make()
    (folder / "state").write_bytes(FILES["state"])

    def refuse(*_: object) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr("pytest_kvm.boot_cache.template_files.write", refuse)
    for _ in range(2):
        reads.clear()
        store.claim(KEY).close()
        assert reads == ["state"]
