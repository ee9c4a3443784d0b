"""What a kernel takes for a lockup of its own when its clock jumps, because it was restored."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest_kvm as kvm
from tests.guest_specs import SMALL


@kvm.guest
def busy():
    # Without it, a kernel that is emulated on a busy host may find at boot that it cannot trust the counter.
    return replace(SMALL, cmdline_extra="tsc=reliable", kernel_errors="ignore")


def test_a_kernel_whose_clock_jumped_is_excused(busy):
    """Without KVM the time stamp counter never goes back."""
    busy.run("echo 1 >/proc/sys/kernel/watchdog_thresh")  # a processor that is stuck for 2 s is a lockup
    # A processor that wakes up from idleness is not: it has to be at work.
    busy.run("systemd-run sh -c 'while :; do :; done'")
    reports = list(itertools.chain.from_iterable(jumps(busy)))
    assert [each.line for each in reports if not each.excuse] == []
    if busy.machine.domain.xml().startswith("<domain type='qemu'"):
        assert "soft lockup" in [each.kind for each in reports]


def jumps(guest):
    """Let the clock jump until the kernel reports it, which depends on when its watchdog looks."""
    for _ in range(8):
        here = guest.savepoint()
        guest.run(["sleep", "8"])
        guest.machine.kernel.skip_console()
        guest.machine.kernel.skip_log()
        here.restore()
        reports = guest.machine.kernel.look()
        yield reports
        if reports:
            return
        here.drop()
