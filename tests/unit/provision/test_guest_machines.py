"""Which machine a handle leads to, when several callers want another one."""

from __future__ import annotations

import threading
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import pytest

from pytest_kvm.errors import DomainFailed, GuestError
from pytest_kvm.provision.guest_machines import GuestMachines
from tests.unit.provision.test_guest_state import future_of, started


class Starter:
    """Starts machines that have ended, once it may."""

    def __init__(self) -> None:
        self.begun = threading.Event()
        self.may_go_on = threading.Event()
        self.refuses = False

    def get(self) -> Starter:
        return self

    def start_again(self, former):
        self.begun.set()
        assert self.may_go_on.wait(10)
        if self.refuses:
            raise DomainFailed("QEMU refused")
        return replace(former, machine=started([]).machine, base=None)


@pytest.fixture
def starter():
    return Starter()


@pytest.fixture
def leads_to():
    """The machines that the handle was led to."""
    return []


@pytest.fixture
def machines(starter, leads_to):
    def lead(machine: Future[Any]) -> None:
        leads_to.append(machine.result())

    return GuestMachines(future_of(started([], is_on=False)), starter, lead_handle_to=lead)


def test_of_two_that_switch_a_guest_on_the_second_finds_it_on(machines, starter, leads_to):
    with ThreadPoolExecutor() as pool:
        first = pool.submit(machines.start_again)
        assert starter.begun.wait(10)
        second = pool.submit(machines.start_again)
        starter.may_go_on.set()
        assert [first.result()] == leads_to
        with pytest.raises(GuestError, match="web is on already"):
            second.result()
    assert machines.current.machine is first.result()


def test_a_machine_that_was_refused_can_be_started_again(machines, starter, leads_to):
    starter.may_go_on.set()
    starter.refuses = True
    with pytest.raises(DomainFailed):
        machines.start_again()
    assert leads_to == []
    starter.refuses = False
    assert [machines.start_again()] == leads_to
