"""What the host gives a guest's processors, and a clock that follows it."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import psutil
import pytest

from pytest_kvm.hypervisor import steal_time
from pytest_kvm.hypervisor.steal_time import GuestClock, steal_seconds, vcpu_wait_seconds
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
        if vcpu_wait_seconds(guest) < 0.2:
            raise NotYet(str(vcpu_wait_seconds(guest)))

    wait_until(held_up_for_a_while, describe="the other to get its share", timeout=60)
    process = psutil.Process(guest)
    process.suspend()
    wait_until(lambda: process.status() == psutil.STATUS_STOPPED or _not_yet(), describe="a stop", timeout=10)
    before = vcpu_wait_seconds(guest)
    busy("a third")
    assert vcpu_wait_seconds(guest) == before, "what has nothing to do is not held up"


def _not_yet():
    raise NotYet("running")


def test_other_threads_do_not_count(busy):
    worker = busy("IO mon_iothread")
    busy("another")
    assert vcpu_wait_seconds(worker) == 0


def test_a_process_that_is_gone_was_never_held_up():
    process = subprocess.Popen(["true"])
    process.wait()
    assert vcpu_wait_seconds(process.pid) == 0


def test_what_is_stolen_is_a_part_of_the_time_since_the_machine_started():
    assert 0 <= steal_seconds() <= float(Path("/proc/uptime").read_text().split()[0])


class Machine:
    """What a host has given since it started; a test says how it goes on."""

    def __init__(self) -> None:
        self.host, self.waited, self.stolen = 1000.0, 3.0, 40.0

    def goes_on(self, seconds: float, *, waited: float = 0, stolen: float = 0) -> None:
        self.host, self.waited, self.stolen = self.host + seconds, self.waited + waited, self.stolen + stolen


@pytest.fixture
def machine(monkeypatch):
    machine = Machine()
    monkeypatch.setattr(steal_time.time, "monotonic", lambda: machine.host)
    monkeypatch.setattr(steal_time, "vcpu_wait_seconds", lambda _pid: machine.waited)
    monkeypatch.setattr(steal_time, "steal_seconds", lambda: machine.stolen)
    return machine


@pytest.mark.parametrize(
    ("lost", "passed"),
    [
        ({}, 100),
        ({"waited": 60}, 40),
        ({"stolen": 30}, 70),
        ({"waited": 100}, 0),
        ({"waited": 100, "stolen": 50}, 0),
        # Half of the host's time is stolen, half of the guest's goes to another: it ran for a quarter.
        ({"waited": 50, "stolen": 50}, 25),
    ],
)
def test_what_passes_is_what_the_guest_could_use(machine, lost, passed):
    guest = GuestClock(4711)
    before = guest.now()
    machine.goes_on(100, **lost)
    assert guest.now() - before == passed
    assert guest.now() - before == passed


def test_it_is_the_present_that_counts(machine):
    guest = GuestClock(4711)
    machine.goes_on(10_000)
    before = guest.now()
    machine.goes_on(100, waited=50, stolen=50)
    assert guest.now() - before == 25


def test_a_delay_that_is_told_late_is_made_up_for(machine):
    guest = GuestClock(4711)
    machine.goes_on(10)
    before = guest.now()
    machine.goes_on(1, waited=9)
    assert guest.now() == before, "it never goes back"
    machine.goes_on(20)
    assert guest.now() == before + 12


def test_between_two_readings_all_seconds_count_and_then_it_stands_still(machine):
    guest = GuestClock(4711)
    before = guest.now()
    told = []
    for seconds, waited in [(0.2, 0.2), (0.1, 0.0), (0.05, 0.0), (0.1, 0.0)]:
        machine.goes_on(seconds, waited=waited)
        told.append(round(guest.now() - before, 6))
    assert told == [0.2, 0.2, 0.2, 0.25]


def test_the_losses_are_read_a_few_times_a_second(machine, monkeypatch):
    guest = GuestClock(4711)
    read = []
    monkeypatch.setattr(steal_time, "vcpu_wait_seconds", lambda pid: read.append(pid) or machine.waited)
    for _ in range(100):
        machine.goes_on(0.01)
        guest.now()
    assert 2 <= len(read) <= 4


def test_a_qemu_that_has_ended_was_held_up_all_the_same(machine):
    guest = GuestClock(4711)
    machine.goes_on(10, waited=4)
    before = guest.now()
    machine.waited = 0
    machine.goes_on(5)
    assert guest.now() == before + 5


def test_of_a_qemu_elsewhere_all_seconds_count(machine):
    guest = GuestClock(None)
    before = guest.now()
    machine.goes_on(10, stolen=5)
    assert guest.now() == before + 10
