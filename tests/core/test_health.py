"""What goes wrong in a guest fails the test that ran."""

from __future__ import annotations

import pytest

import pytest_kvm as kvm

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
