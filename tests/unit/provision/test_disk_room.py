"""How much room on the disk a machine is asked for."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from pytest_kvm.errors import NoCapacity
from pytest_kvm.provision.disk_room import (
    CLONE_MIB,
    COLD_BOOT_MIB,
    disks_mib,
    needed_mib,
    no_disk_room,
    run_disk_full_in_words,
)
from tests.unit.provision.template_facts import FACTS


def template_in(folder, facts):
    made: Any = SimpleNamespace(path=folder.joinpath, manifest=SimpleNamespace(facts=facts.to_json()))
    return made


def test_a_machine_that_boots_needs_more_than_a_clone(tmp_path):
    assert needed_mib(None) == COLD_BOOT_MIB > CLONE_MIB
    assert needed_mib(template_in(tmp_path, FACTS)) == CLONE_MIB


def test_a_clone_whose_disks_are_copied_needs_their_space(tmp_path):
    (tmp_path / "root.qcow2").write_bytes(b"x" * 3 * 1024 * 1024)
    copied = template_in(tmp_path, replace(FACTS, tier="snapshot"))
    assert disks_mib(copied) == 3
    assert needed_mib(copied) == CLONE_MIB + 3


def test_the_refusal_names_the_guest_and_what_helps():
    refusal = no_disk_room("web", "16 MiB are needed")
    assert refusal.brief == "web: no room on the disk: 16 MiB are needed"
    assert "pytest-kvm gc" in refusal.resolution
    assert "--kvm-run-dir" in refusal.resolution


def test_a_full_disk_met_later_says_the_same(tmp_path):
    failing = pytest.raises(NoCapacity, match="no room for a run")
    with failing as refused, run_disk_full_in_words(tmp_path, "no room for a run"):
        raise OSError(28, "No space left on device")
    assert "--kvm-run-dir" in refused.value.resolution
