"""Expect what a guest's kernel reports."""

from __future__ import annotations

import pytest

import pytest_kvm as kvm

LIMITS = ["--property=MemoryMax=40M", "--property=MemorySwapMax=0"]


@pytest.mark.kvm(allow_kernel_errors=[r"Memory cgroup out of memory: Killed process \d+ \(python3\)"])
def test_the_limit_holds(machine: kvm.Guest) -> None:
    too_much = "eaten = bytearray(200 << 20); print('not reached')"
    result = machine.run(["systemd-run", "--pipe", "--wait", *LIMITS, "python3", "-c", too_much], check=False)
    assert "not reached" not in result.stdout
