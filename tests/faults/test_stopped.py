"""A QEMU that somebody has stopped (SIGSTOP)."""

from __future__ import annotations

import os
import signal

import pytest

import pytest_kvm as kvm
from pytest_kvm.errors import AgentError, CommandTimeout, DomainFailed, GuestGone, SshUnavailable
from tests.guest_specs import SMALL


@kvm.guest(scope="module")
def machine():
    return SMALL


def stop(guest):
    os.kill(guest.machine.domain.pid, signal.SIGSTOP)


def test_commands_time_out(machine):
    sleeper = machine.start("sleep 600")
    stop(machine)
    with pytest.raises(CommandTimeout):
        sleeper.wait(timeout=2)
    with pytest.raises(SshUnavailable, match="sshd did not answer within 2 s"):
        machine.run("true", timeout=2)
    with pytest.raises(AgentError):
        machine.machine.domain.agent("guest-ping", timeout=2)


def test_the_next_test_has_another(machine):
    machine.run("true")


def test_what_qemu_has_to_do_fails_and_the_guest_is_gone(machine):
    point = machine.savepoint()
    stop(machine)
    with pytest.raises(
        DomainFailed, match=r"QEMU does not answer: its process was stopped \(SIGSTOP\) for 20 s"
    ):
        point.restore()
    with pytest.raises(GuestGone, match=r"its process was stopped \(SIGSTOP\)"):
        machine.run("true")


def test_the_next_test_has_another_again(machine):
    machine.run("true")


def test_one_that_goes_on_in_time_is_as_before(machine):
    machine.run("touch /root/here")
    stop(machine)
    with pytest.raises(SshUnavailable):
        machine.run("true", timeout=1)
    os.kill(machine.machine.domain.pid, signal.SIGCONT)
    machine.savepoint()
    assert machine.run("ls /root").stdout == "here\n"


def test_one_that_is_stopped_at_the_end_is_removed(kvm_guests):
    guest = kvm_guests.boot(SMALL)
    pid = guest.machine.domain.pid
    stop(guest)
    kvm_guests.remove_all()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
