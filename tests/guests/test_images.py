"""Images are built from packages once, whoever asks, and boot."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace

from pytest_kvm.images.image_store import ImageStore
from pytest_kvm.plugin.session import settings_stashed
from pytest_kvm.spec.image import ImageRef
from tests import timings
from tests.guest_specs import SMALL


def build(cache_dir, events):
    argv = [
        sys.executable,
        "-m",
        "pytest_kvm",
        f"--kvm-cache-dir={cache_dir}",
        f"--kvm-events={events}",
        "images",
        "build",
        "debian-12",
    ]
    return subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def test_two_processes_build_once_and_debian_12_boots(pytestconfig, kvm_guests, tmp_path):
    settings = settings_stashed(pytestconfig)
    store = ImageStore.of(settings)
    if store.find(ImageRef("debian-12")) is not None:
        store.remove("debian-12")
    both = [build(settings.cache_dir, tmp_path / "events") for _ in range(2)]
    outputs = [process.communicate(timeout=600)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0], outputs
    assert sum("installing packages" in output for output in outputs) == 1, outputs
    assert sum("waiting for debian-12" in output for output in outputs) == 1, outputs
    timings.add(tmp_path / "events")
    (event,) = map(json.loads, (tmp_path / "events").read_text().splitlines())
    assert (event["guest"], event["kind"], event["why"]) == ("", "image", "debian-12")
    guest = kvm_guests.boot(replace(SMALL, image="debian-12"))
    assert "VERSION_CODENAME=bookworm" in guest.read_text("/etc/os-release")
