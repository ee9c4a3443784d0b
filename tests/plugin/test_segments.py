"""Segments in runs of their own: with guests that boot cold, and with a switch that is killed."""

from __future__ import annotations

SUITE = """
import os
import signal

import pytest
import pytest_kvm as kvm


@kvm.network(scope="module")
def lan():
    return kvm.NetworkSpec(mtu=9000)


@kvm.guest(scope="module")
def left(lan):
    return kvm.GuestSpec(memory="512MiB", vcpus=1, nics=[kvm.Nic(lan)])


@kvm.guest(scope="module")
def right(lan):
    return kvm.GuestSpec(memory="512MiB", vcpus=1, nics=[kvm.Nic(lan)], hostname="db.example.org")


@pytest.mark.kvm(reset="never")
def test_guests_that_boot_cold(left, right):
    for name in ("right", "right.lan", "db", "db.lan", "db.example.org"):
        left.run(["ping", "-c", "1", "-W", "20", "-M", "do", "-s", "8900", name])
    right.run(["ping", "-6", "-c", "1", "-W", "20", "left.lan"])


@pytest.mark.kvm(reset="never")
def test_one_that_was_off_is_back(left, right):
    right.power_off()
    right.power_on()
    left.run(["ping", "-c", "1", "-W", "20", "right"])
    right.run(["ping", "-c", "1", "-W", "20", "left"])


@pytest.mark.kvm(reset="never")
def test_a_switch_that_is_killed(request, left):
    from pytest_kvm.plugin.session import run_of

    switch = run_of(request.config)._switch.get()
    os.kill(switch.pid, signal.SIGKILL)
    os.waitid(os.P_PID, switch.pid, os.WEXITED | os.WNOWAIT)
    left.run("true")
"""


def test_cold_boots_and_a_switch_that_is_killed(pytester):
    pytester.makepyfile(SUITE)
    result = pytester.runpytest_subprocess("-v", "--kvm-cache=off", timeout=900)
    result.stdout.fnmatch_lines(
        [
            "*::test_guests_that_boot_cold PASSED*",
            "*::test_one_that_was_off_is_back PASSED*",
            "*::test_a_switch_that_is_killed ERROR*",
            "E *SwitchFailed: the switch of this run has ended*",
        ]
    )
    result.stdout.no_fnmatch_line("*CleanupFailed*")
