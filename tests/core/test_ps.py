"""``pytest-kvm ps`` on real guests."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys

import pytest

from pytest_kvm.waiting import NotYet, wait_until


@pytest.fixture
def seen(guest):
    def seen() -> tuple[dict[str, object], dict[str, object]]:
        """Return what is told of this run, and of the guest."""
        argv = [sys.executable, "-m", "pytest_kvm", "ps", "--json"]
        runs = json.loads(subprocess.run(argv, capture_output=True, text=True, check=True).stdout)["runs"]
        (run,) = (each for each in runs if each["folder"] == str(guest.machine.folder.parent))
        (machine,) = (each for each in run["guests"] if each["folder"] == str(guest.machine.folder))
        return run, machine

    return seen


def test_a_guest_with_its_run_and_test(guest, seen, request, pytestconfig):
    run, machine = seen()
    assert run["is_live"]
    assert run["test"] == request.node.nodeid
    assert "pytest" in run["command"]
    assert run["worker"] == getattr(pytestconfig, "workerinput", {"workerid": ""})["workerid"]
    assert (machine["guest"], machine["state"]) == (guest.name, "running")
    assert machine["pid"] == guest.machine.domain.pid
    assert machine["domain"] == guest.machine.domain.name
    assert (machine["memory_mib"], machine["vcpus"]) == (512, 1)
    assert 20 < machine["memory_used_mib"] < 1500
    assert machine["seconds"] > 0


def test_its_line_logs_in(guest, seen):
    _, machine = seen()
    argv = [*shlex.split(machine["ssh_command"]), "cat", "/proc/sys/kernel/random/boot_id"]
    done = subprocess.run(argv, capture_output=True, text=True, check=True, timeout=120)
    assert done.stdout == guest.run("cat /proc/sys/kernel/random/boot_id").stdout


def test_a_guest_at_work_takes_a_processor(guest, seen):
    with guest.start("while :; do :; done"):

        def is_busy():
            _, machine = seen()
            if (machine["cpu_percent"] or 0) < 20:
                raise NotYet(f"{machine['cpu_percent']} %")

        wait_until(is_busy, describe="the guest to be busy", timeout=60)
