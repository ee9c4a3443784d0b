"""RAM files in memory: with a folder in place of ``/dev/shm``."""

from __future__ import annotations

import os
import shutil
import stat
from dataclasses import replace

import pytest

from pytest_kvm.boot_cache import ram_file
from pytest_kvm.boot_cache.template_store import TemplateStore
from pytest_kvm.host import folder_marker
from tests.unit.boot_cache.conftest import FILES, KEY


@pytest.fixture
def machine(monkeypatch):
    """Say how much memory (MiB) there is: total, free, free in /dev/shm."""

    def machine(total: int, free: int, shm: int) -> None:
        monkeypatch.setattr(ram_file, "memory_total_mib", lambda: total)
        monkeypatch.setattr(ram_file, "memory_available_mib", lambda: free)
        monkeypatch.setattr(ram_file, "disk_free_mib", lambda _: shm)

    machine(8000, 8000, 8000)
    return machine


@pytest.fixture
def in_memory(settings, machine):
    return TemplateStore.of(replace(settings, cache_ram="tmpfs"))


def test_ram_files_are_on_disk_unless_memory_is_asked_for(make, memory):
    folder = make()
    assert not (folder / "ram").is_symlink()
    assert list(memory.iterdir()) == []


def test_a_ram_file_in_memory_belongs_to_the_template(in_memory, make, memory):
    folder = make(into=in_memory)
    (own,) = memory.iterdir()
    assert (folder / "ram").readlink() == own / "ram"
    assert stat.S_IMODE(own.stat().st_mode) == 0o700
    assert stat.S_IMODE((own / "ram").stat().st_mode) == 0o600
    with in_memory.claim(KEY) as template:
        assert template.path("ram").read_bytes() == FILES["ram"]


def test_it_is_there_before_qemu_is(in_memory, memory):
    """QEMU 7.2 would try for ever to make what a link leads to."""
    with in_memory.building(KEY, ram_mib=512) as building:
        assert building.ram.is_symlink()
        assert building.ram.read_bytes() == b""


def test_it_goes_with_its_template(in_memory, make, inventory, memory):
    make(into=in_memory)
    (info,) = inventory.list()
    assert info.size > (next(memory.iterdir()) / "ram").stat().st_blocks * 512
    inventory.collect(cap=0)
    assert list(memory.iterdir()) == []


def test_it_goes_when_the_whole_cache_was_removed(in_memory, make, memory, settings, tmp_path):
    make(into=in_memory)
    shutil.rmtree(settings.cache_dir)
    other = TemplateStore.of(replace(settings, cache_dir=tmp_path / "other"))
    make(into=other)
    assert list(memory.iterdir()) == []


def test_one_that_is_not_published_leaves_nothing(in_memory, memory):
    with in_memory.building(KEY, ram_mib=512) as building:
        building.ram.write_bytes(b"half")
        assert len(list(memory.iterdir())) == 1
    assert list(memory.iterdir()) == []


def test_after_a_reboot_it_is_gone_and_noticed(in_memory, make, memory):
    make(into=in_memory)
    (own,) = memory.iterdir()
    shutil.rmtree(own)
    told: list[str] = []
    assert in_memory.claim(KEY, on_discard=told.append) is None
    assert told == ["ram is missing (it was in memory)"]


@pytest.mark.parametrize(
    ("total", "free", "shm", "fits"),
    [
        (8000, 8000, 8000, True),
        (8000, 2512, 8000, True),
        (8000, 2511, 8000, False),
        (8000, 8000, 64, False),
    ],
)
def test_a_quarter_of_the_memory_stays_free(in_memory, machine, total, free, shm, fits):
    machine(total, free, shm)
    with in_memory.building(KEY, ram_mib=512) as building:
        assert building.ram.is_symlink() == fits
        assert (building.ram_note == "") == fits
        assert fits or "512 MiB" in building.ram_note
        building.ram.write_bytes(b"memory")


def test_a_machine_without_such_memory_has_the_disk(in_memory, memory):
    memory.rmdir()
    with in_memory.building(KEY, ram_mib=512) as building:
        assert not building.ram.is_symlink()
        assert building.ram_note == f"there is no {memory}"


def test_memory_that_cannot_be_written_to_is_not_used(in_memory, memory, monkeypatch):
    monkeypatch.setattr(ram_file, "_prefix", lambda: "missing/")
    with in_memory.building(KEY, ram_mib=512) as building:
        assert not building.ram.is_symlink()
        assert "No such file" in building.ram_note


def test_what_others_keep_in_memory_is_left_alone(in_memory, make, memory, settings, tmp_path):
    foreign = memory / f"pytest-kvm-{os.getuid()}-something"
    foreign.mkdir()
    (foreign / "ram").touch()
    precious = tmp_path / "precious"
    folder_marker.make(precious, entry="/nowhere")
    (memory / f"pytest-kvm-{os.getuid()}-precious").symlink_to(precious)
    (memory / "other").symlink_to("nowhere")
    make(into=in_memory)
    before = {path.name for path in memory.iterdir()}
    shutil.rmtree(settings.cache_dir)
    make(into=TemplateStore.of(settings))
    after = {path.name for path in memory.iterdir()}
    assert len(before) == 4
    assert after == {foreign.name, f"pytest-kvm-{os.getuid()}-precious", "other"}
    assert (foreign / "ram").exists()
    assert folder_marker.is_ours(precious)
