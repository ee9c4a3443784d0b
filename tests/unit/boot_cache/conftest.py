from __future__ import annotations

import os
from typing import Any

import pytest

from pytest_kvm.boot_cache import ram_file
from pytest_kvm.boot_cache.inventory import Inventory
from pytest_kvm.boot_cache.template_store import TemplateStore
from pytest_kvm.settings import Settings

KEY = "5ca1ab1e" * 8
OTHER = "0ddba11" + "0" * 57
FILES = {
    "ram": bytes(200_000) + b"memory" + bytes(100_000),
    "state": b"devices",
    "disk0.qcow2": b"disk",
    "console.log": b"booted",
    "id_ed25519": b"key",
}


@pytest.fixture(autouse=True)
def memory(tmp_path, monkeypatch):
    """What stands for /dev/shm."""
    folder = tmp_path / "shm"
    folder.mkdir()
    monkeypatch.setattr(ram_file, "_MEMORY", folder)
    return folder


@pytest.fixture
def settings(tmp_path):
    return Settings(cache_dir=tmp_path / "cache", run_dir=tmp_path / "run")


@pytest.fixture
def store(settings):
    return TemplateStore.of(settings)


@pytest.fixture
def inventory(settings):
    return Inventory.of(settings)


@pytest.fixture
def make(store):
    """Put a template of given files into the store, without any guest."""

    def make(key: str = KEY, *, into: TemplateStore = store, used: float | None = None, **files: bytes):
        """Return its folder; it is not in use."""
        with into.building(key) as building:
            for name, contents in (FILES | files).items():
                target = building.ram if name == "ram" else building.folder / name
                target.write_bytes(contents)
            with building.publish(summary="GuestSpec('mine')", versions={"qemu": "7.2"}, facts=FACTS) as made:
                folder = made.folder
        if used is not None:
            os.utime(folder / "used", (used, used))
        return folder

    return make


FACTS: dict[str, Any] = {"macs": ["52:54:00:00:00:01"], "memory": 512}
