"""What ``pytest-kvm ps`` says of machines that are no guests of a test now, on real ones."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

import pytest_kvm as kvm
from pytest_kvm.waiting import NotYet, wait_until
from tests.guest_specs import SMALL


@kvm.guest(scope="module")
def worker():
    """A guest that is started over before each test."""
    return SMALL


def machines_of(guest):
    """Return all machines of a guest: their states, and how to log in."""
    argv = [sys.executable, "-m", "pytest_kvm", "ps", "--json"]
    runs = json.loads(subprocess.run(argv, capture_output=True, text=True, check=True).stdout)["runs"]
    (run,) = (each for each in runs if each["folder"] == str(guest.machine.folder.parent))
    return [(each["state"], each["ssh_command"]) for each in run["guests"] if each["guest"] == guest.name]


@pytest.mark.parametrize("start", [1, 2, 3])
def test_a_guest_has_one_machine_that_runs_and_later_a_spare_one(worker, start):
    worker.run("touch /changed")

    def look():
        machines = machines_of(worker)
        if start == 3 and ("spare", None) not in machines:
            raise NotYet(str(machines))
        return [state for state, _ in machines if state != "spare"]

    assert wait_until(look, describe="a spare clone", timeout=60) == ["running"]


def test_a_guest_is_off_and_runs_again(boot):
    guest = boot(SMALL)
    guest.power_off()
    assert machines_of(guest) == [("off", None)]
    guest.power_on()
    assert machines_of(guest) == [("running", guest.ssh_command)]
