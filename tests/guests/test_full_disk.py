"""Runs whose folder is on a disk that is too small, or becomes full while guests run."""

from __future__ import annotations

from dataclasses import replace

import pytest

from pytest_kvm.plugin.session import settings_stashed
from tests.own_disk import on_small_disk
from tests.suite_process import suites_in

HEAD = """
import os, shutil
from contextlib import contextmanager
from pathlib import Path
import pytest
import pytest_kvm as kvm

@kvm.guest(scope="module")
def machine():
    return kvm.GuestSpec(memory="512MiB", vcpus=1)

@contextmanager
def filled(run_dir, *, leaving=1024 * 1024):
    filler = Path(run_dir, "filler")
    with filler.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, shutil.disk_usage(run_dir).free - leaving)
    try:
        yield
    finally:
        filler.unlink()

@pytest.fixture
def run_dir(pytestconfig):
    return pytestconfig.getoption("--kvm-run-dir")

# More than the disks have room for.
FILL = "head -c 40M /dev/urandom >/root/big; sync"
"""

FILLS_UP = f"""{HEAD}
def test_a_savepoint_has_no_room_and_the_guest_goes_on(machine, run_dir):
    machine.run("head -c 4M /dev/urandom >/dev/shm/much; touch /root/changed")
    refused = pytest.raises(kvm.errors.SavepointRefused, match="the disk has no room for its memory: ")
    with filled(run_dir, leaving=100 * 1024 * 1024), refused:
        machine.savepoint()
    assert machine.run("ls /root /dev/shm").stdout.split() == ["/dev/shm:", "much", "/root:", "changed"]
    point = machine.savepoint()
    machine.run("rm /dev/shm/much /root/changed")
    point.restore()
    assert machine.run("ls /root /dev/shm").stdout.split() == ["/dev/shm:", "much", "/root:", "changed"]

def test_a_guest_that_finds_no_room_ends(machine, run_dir):
    machine.run("echo is here >/root/word; sync")
    with filled(run_dir):
        with pytest.raises(kvm.errors.GuestGone, match="the host's disk is full, . MiB are free for .*qcow2"):
            machine.run(FILL)
        with pytest.raises(kvm.errors.GuestGone):
            machine.run("true")
    machine.power_on()
    assert machine.read_text("/root/word") == "is here\\n"

def test_a_guest_that_is_off_needs_room_for_its_boot(machine, run_dir):
    machine.power_off()
    refused = pytest.raises(kvm.errors.NoCapacity, match="64 MiB are needed")
    with filled(run_dir, leaving=40 * 1024 * 1024), refused:
        machine.power_on()

def test_a_file_system_may_have_no_room_for_more_files(kvm_guests, run_dir):
    kvm_guests.boot(kvm.GuestSpec(memory="512MiB", vcpus=1))
    crowd = Path(run_dir, "crowd")
    crowd.mkdir()
    for number in range(os.statvfs(run_dir).f_favail - 5):
        (crowd / str(number)).touch()
    with pytest.raises(kvm.errors.NoCapacity, match="has room for 5 more files, whatever their size"):
        kvm_guests.boot(kvm.GuestSpec(memory="512MiB", vcpus=1))
    shutil.rmtree(crowd)

def test_whoever_waits_for_it_is_told(machine, run_dir):
    assert machine.run("ls /root").stdout == "", "it was reset"
    with filled(run_dir), machine.start(FILL), pytest.raises(kvm.errors.GuestGone, match="disk is full"):
        machine.wait_for_file("/never")
"""

NEVER_EMPTY = f"""{HEAD}
def test_fill(machine):
    with pytest.raises(kvm.errors.GuestGone, match="the host's disk is full"):
        machine.run(FILL)

def test_its_files_went_before_another_was_started(machine):
    assert machine.run("ls /root").stdout == ""
"""

SPARE_IN_THE_WAY = f"""{HEAD}
import json
from pytest_kvm.waiting import NotYet, wait_until

def see_spare(run_dir):
    records = Path(run_dir).glob("kvm-runs/*/*/machine.json")
    if "spare" not in [json.loads(record.read_text())["state"] for record in records]:
        raise NotYet("there is none")

def test_another_guest_has_its_room(machine, kvm_guests, run_dir):
    wait_until(lambda: see_spare(run_dir), describe="a spare clone", timeout=60)
    with filled(run_dir, leaving=100 * 1024 * 1024):
        kvm_guests.boot(kvm.GuestSpec(memory="512MiB", vcpus=1)).run("true")
"""

ONE_GUEST = f"""{HEAD}
def test_here(machine):
    machine.run("true")
"""


@pytest.fixture
def run(tmp_path, run_dir, pytestconfig):
    """Run a suite on a disk of its own and return its output."""
    settings = replace(settings_stashed(pytestconfig), limits_dir=tmp_path / "limits")
    with suites_in(tmp_path, run_dir=run_dir, settings=settings) as suites:

        def run(source, disk, *arguments):
            suite = suites.start(source, *arguments, within=on_small_disk(run_dir, disk))
            suite.wait()
            return suite.output

        yield run


def test_a_disk_that_is_full_while_guests_run(run):
    output = run(FILLS_UP, "size=700m,nr_inodes=1000")
    assert " 5 passed in " in output, output


def test_a_guest_that_has_filled_the_disk_makes_room_for_its_successor(run):
    output = run(NEVER_EMPTY, "size=30m", "--kvm-pool=1")
    assert " 2 passed in " in output, output
    assert "machine: 1 cow reset" in output, "no spare clone was made, which leaves room"


def test_spare_clones_give_way_to_guests_in_use(run):
    output = run(SPARE_IN_THE_WAY, "size=900m", "--kvm-clone=snapshot", "--kvm-pool=1")
    assert " 1 passed in " in output, output
    assert "its clone has no room on the disk" not in output


@pytest.mark.parametrize(
    ("disk", "arguments", "said"),
    [
        ("size=4k", [], "no room for a run: No space left on device\n0 MiB are free for {run_dir}"),
        ("size=12m", [], "machine: no room on the disk: 16 MiB are needed in {run_dir}/kvm-runs/"),
        ("size=40m", ["--kvm-cache=off"], "machine: no room on the disk: 64 MiB are needed in {run_dir}/"),
    ],
)
def test_what_has_no_room_is_not_begun(run, run_dir, disk, arguments, said):
    output = run(ONE_GUEST, disk, *arguments)
    assert said.format(run_dir=run_dir) in output, output
    assert "or choose another disk with --kvm-run-dir" in output
    assert "Traceback" not in output
    assert "/pytest_kvm/" not in output, "no frames of the plugin"
    assert "power on" not in output
    assert " 1 error in " in output


def test_a_clone_that_would_be_copied_is_booted_where_only_that_has_room(run):
    output = run(ONE_GUEST, "size=100m", "--kvm-clone=snapshot")
    assert " 1 passed in " in output, output
    assert "1 cold boot" in output
    assert "(its clone has no room on the disk: " in output
