"""Deadlines are in the guest's seconds, of which a host without a processor for it takes none."""

from __future__ import annotations

from dataclasses import replace
from itertools import chain, count

import pytest

from pytest_kvm.errors import SshNeverAnswered, WaitTimeout
from pytest_kvm.machine import power, waits
from pytest_kvm.machine.boot import Phases
from pytest_kvm.machine.readiness import wait_until_ready
from pytest_kvm.machine.ssh_wait import wait_for_banner
from pytest_kvm.waiting import NotYet, wait_until
from tests.fakes import output

LATE, FOUND = output("absent", exit_code=75), output("there")


class Clock:
    """A guest's clock that stands still, but for what a test says."""

    now = 0.0

    def at(self, seconds, answer):
        """Return a command that takes until then."""

        def command():
            self.now = seconds
            return answer

        return command


@pytest.fixture
def clock(domain, monkeypatch):
    clock = Clock()
    monkeypatch.setattr(domain, "clock", lambda: clock.now)
    return clock


def limits_of(shell):
    """Return the seconds that each wait in the guest was given."""
    waits = [line.partition("end=$((up + ")[2] for line in shell.ran]
    return [wait.partition(" ")[0] for wait in waits if wait]


def test_a_wait_goes_on_until_its_clock_says_that_it_is_over():
    times = iter([0.0, 0.4, 0.8, 1.0])
    looks = []

    def never():
        looks.append("look")
        raise NotYet("no")

    with pytest.raises(WaitTimeout, match="timed out after 1 s"):
        wait_until(never, describe="nothing", timeout=1, every=0.001, clock=lambda: next(times))
    assert len(looks) == 3


def test_what_waits_in_the_guest_is_started_again_for_what_it_lost(machine, shell, clock):
    shell.expect("sh -c", clock.at(4.2, LATE), clock.at(8.7, LATE), clock.at(9, FOUND))
    waits.wait_for_file(machine, "/x", absent=False, timeout=10)
    assert limits_of(shell) == ["10", "6", "2"]


def test_it_looks_once_where_there_is_no_time(machine, shell, clock):
    shell.expect("sh -c", clock.at(1, FOUND))
    waits.wait_for_file(machine, "/x", absent=False, timeout=0)
    assert limits_of(shell) == ["0"]


def test_it_is_not_once_the_time_is_over(machine, shell, clock):
    shell.expect("sh -c", clock.at(5, LATE), clock.at(11, LATE))
    with pytest.raises(WaitTimeout, match="timed out after 10 s waiting for /x .*; last seen: absent"):
        waits.wait_for_file(machine, "/x", absent=False, timeout=10)
    assert len(shell.ran) == 2


def test_a_boot_that_fails_says_for_how_long_the_guest_was_held_up(boot, domain):
    domain.held_up = 41.0
    with pytest.raises(SshNeverAnswered) as failed:
        wait_for_banner(boot, timeout=0.1)
    assert "for 41 s in all, the host had no processor for the guest" in failed.value.details
    domain.held_up = 0.2
    with pytest.raises(SshNeverAnswered) as failed:
        wait_for_banner(boot, timeout=0.1)
    assert "no processor" not in failed.value.details


def test_the_time_out_of_a_whole_boot_is_in_the_guests_seconds_too(machine, shell, sshd, clock):
    machine = replace(machine, access=replace(machine.access, port=sshd))
    shell.expect("result.json ]", clock.at(40, output("absent\n---\n\n---\n")))
    shell.expect("systemctl show", "")
    hosts = chain([0.0, 5.0], count(900.0))  # five seconds until the ladder, then far too many
    phases = Phases(machine.log, clock=lambda: next(hosts))
    wait_until_ready(machine, phases=phases, units=["nginx.service"], boot_timeout=100)
    assert limits_of(shell) == ["55"]


def test_a_guest_that_is_held_up_may_take_longer_to_go_down(machine, domain, clock, monkeypatch):
    waited = []

    def wait_end(seconds):
        waited.append(seconds)
        clock.now += seconds / 2  # the host kept the other half for itself
        return len(waited) == 3

    monkeypatch.setattr(domain, "wait_end", wait_end)
    power.shutdown(machine, button=True, timeout=60)
    assert waited == [60, 30, 15]
