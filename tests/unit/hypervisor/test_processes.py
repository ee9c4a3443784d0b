"""What the host gives a guest's processors, told from threads that are called like QEMU's."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import psutil
import pytest

from pytest_kvm.hypervisor.processes import held_up, stolen
from pytest_kvm.waiting import NotYet, wait_until

BUSY = """
import os
os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
open("/proc/self/comm", "w").write("NAME")
print("busy", flush=True)
while True:
    pass
"""


@pytest.fixture
def busy() -> Iterator[object]:
    """Start a process that always has something to do, on the same processor as all others of the kind."""
    with ExitStack() as stack:

        def start(name: str) -> int:
            argv = [sys.executable, "-c", BUSY.replace("NAME", name)]
            process = stack.enter_context(subprocess.Popen(argv, stdout=subprocess.PIPE))
            stack.callback(process.kill)
            assert process.stdout is not None
            assert process.stdout.readline() == b"busy\n"
            return process.pid

        yield start


@pytest.mark.parametrize("name", ["CPU 0/KVM", "CPU 11/TCG", "ALL CPUs/TCG"])
def test_a_processor_that_has_to_share_is_held_up(busy, name):
    guest = busy(name)
    busy("another")

    def held_up_for_a_while():
        if held_up(guest) < 0.2:
            raise NotYet(str(held_up(guest)))

    wait_until(held_up_for_a_while, describe="the other to get its share", timeout=60)
    process = psutil.Process(guest)
    process.suspend()
    wait_until(lambda: process.status() == psutil.STATUS_STOPPED or _not_yet(), describe="a stop", timeout=10)
    before = held_up(guest)
    busy("a third")
    assert held_up(guest) == before, "what has nothing to do is not held up"


def _not_yet():
    raise NotYet("running")


def test_other_threads_do_not_count(busy):
    worker = busy("IO mon_iothread")
    busy("another")
    assert held_up(worker) == 0


def test_a_process_that_is_gone_was_never_held_up():
    process = subprocess.Popen(["true"])
    process.wait()
    assert held_up(process.pid) == 0


def test_what_is_stolen_is_a_part_of_the_time_since_the_machine_started():
    assert 0 <= stolen() <= float(Path("/proc/uptime").read_text().split()[0])
