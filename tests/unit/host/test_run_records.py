"""What a run writes down for those who look from outside."""

from __future__ import annotations

import json
import os
from dataclasses import replace

import pytest

from pytest_kvm.host import run_records
from pytest_kvm.host.run_records import MACHINE, TEST
from tests.unit.host.machine_folders import RECORD


def machine(folder):
    return run_records.read_machine(folder, owner=os.geteuid())


def test_a_machines_record_is_read_as_it_was_written(tmp_path):
    run_records.write_machine(tmp_path, RECORD)
    assert machine(tmp_path) == RECORD
    assert [path.name for path in tmp_path.iterdir()] == [MACHINE]
    assert (tmp_path / MACHINE).stat().st_mode & 0o777 == 0o600


def test_the_state_changes_and_nothing_else(tmp_path):
    run_records.write_machine(tmp_path, RECORD)
    run_records.write_state(tmp_path, "running")
    found = machine(tmp_path)
    assert found == replace(RECORD, state="running", since=found.since)
    assert 0 <= run_records.seconds_since(found.since) < 60


def test_a_machine_without_a_record_gets_none(tmp_path):
    run_records.write_state(tmp_path, "running")
    run_records.write_state(tmp_path / "gone", "running")
    assert list(tmp_path.iterdir()) == []


def test_the_current_test_and_that_it_is_over(tmp_path):
    for test in ("tests/test_x.py::test_a[ü]", ""):
        run_records.write_test(tmp_path, test)
        found = run_records.read_test(tmp_path, owner=os.geteuid())
        assert found is not None
        assert (found.test, found.waits_for) == (test, "")


def test_a_very_long_id_is_cut(tmp_path):
    run_records.write_test(tmp_path, "x" * 100_000)
    found = run_records.read_test(tmp_path, owner=os.geteuid())
    assert found is not None
    assert 0 < len(found.test) < 10_000


@pytest.mark.parametrize(
    "damage",
    [
        {"port": "2222; reboot"},
        {"memory_mib": 1.5},
        {"vcpus": True},
        {"state": "on fire"},
        {"more": "than known"},
    ],
)
def test_a_record_of_other_types_is_none(tmp_path, damage):
    run_records.write_machine(tmp_path, RECORD)
    content = json.loads((tmp_path / MACHINE).read_text())
    (tmp_path / MACHINE).write_text(json.dumps({**content, **damage}))
    assert machine(tmp_path) is None


@pytest.mark.parametrize("content", ["", "{", "[]", "null", '{"test": "x"}', "[" * 60_000, "\xff"])
def test_a_damaged_record_is_none(tmp_path, content):
    (tmp_path / TEST).write_text(content, encoding="latin-1")
    assert run_records.read_test(tmp_path, owner=os.geteuid()) is None


def test_a_record_of_another_user_is_none(tmp_path):
    run_records.write_machine(tmp_path, RECORD)
    assert run_records.read_machine(tmp_path, owner=os.geteuid() + 1) is None


def test_neither_links_nor_pipes_are_read(tmp_path):
    run_records.write_machine(tmp_path, RECORD)
    (tmp_path / MACHINE).rename(tmp_path / "aside")
    (tmp_path / MACHINE).symlink_to("aside")
    assert machine(tmp_path) is None
    (tmp_path / MACHINE).unlink()
    os.mkfifo(tmp_path / MACHINE)
    assert machine(tmp_path) is None


def test_a_record_that_cannot_be_written_fails_nobody(tmp_path):
    run_records.write_machine(tmp_path / "gone", RECORD)
    (tmp_path / MACHINE).mkdir()
    run_records.write_machine(tmp_path, RECORD)
    assert [path.name for path in tmp_path.iterdir()] == [MACHINE], "and leaves nothing"
