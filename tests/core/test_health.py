"""What goes wrong in a guest fails the test that ran."""

from __future__ import annotations

import pytest

import pytest_kvm as kvm
from pytest_kvm.machine.vitals import find_trouble

EATER = "import sys; sys.stdout.write('begun'); eaten = bytearray(200 << 20)"


def eat(guest):
    """Have a program take more memory than it may have."""
    limits = ["--property=MemoryMax=40M", "--property=MemorySwapMax=0"]
    guest.run(["systemd-run", "--wait", "--quiet", *limits, "python3", "-c", EATER], check=False)


@pytest.mark.xfail(raises=kvm.GuestUnhealthy, strict=True)
def test_an_oom_kill_fails_the_test(guest):
    eat(guest)


@pytest.mark.kvm(allow_kernel_errors=[r"Memory cgroup out of memory: Killed process \d+ \(python3\)"])
def test_an_oom_kill_that_is_allowed(guest):
    eat(guest)


@pytest.mark.xfail(raises=kvm.GuestUnhealthy, strict=True)
@pytest.mark.kvm(gates=kvm.Gates(failed_units=True))
def test_a_failed_unit_that_a_gate_forbids_fails_the_test(guest):
    guest.run(["systemd-run", "--wait", "--quiet", "false"], check=False)


def test_a_guest_that_does_not_answer_is_found_out(guest):
    assert find_trouble(guest.machine, can_dump=False) is None
    guest.pause()
    found = find_trouble(guest.machine, can_dump=False)
    assert found is not None
    assert found.what == "does not answer: it is paused"
    guest.resume()
    guest.run("truncate -s 32M disk; mkfs.ext4 -q disk; mount -o loop disk /mnt; fsfreeze -f /mnt")
    guest.start("echo >/mnt/file")
    guest.run("until grep -s '^State:.D' /proc/[0-9]*/status; do sleep 0.1; done")
    found = find_trouble(guest.machine, can_dump=False)
    assert found is not None
    assert found.what.startswith("has tasks that are blocked in its kernel: ")
    assert "mnt_want_write" in found.details
