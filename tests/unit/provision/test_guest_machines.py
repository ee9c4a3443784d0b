"""Which machine a handle leads to, when several callers want another one."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import replace
from typing import Any

import pytest

from pytest_kvm.errors import DomainFailed, GuestError
from pytest_kvm.provision.guest_machines import GuestMachines
from pytest_kvm.provision.starter import Started
from tests.unit.provision.free_rooms import FreeAdmission
from tests.unit.provision.started_machines import future_of, started


def nothing() -> None:
    """Do nothing."""


class Starter:
    """Starts machines that have ended."""

    def __init__(self) -> None:
        self.meanwhile: Callable[[], None] = nothing
        """Called while a machine is being started."""
        self.models: list[Started] = []
        """The machines that others were started like."""
        self.has_disk_room = True

    def get(self) -> Starter:
        return self

    def start_again(self, former):
        self.meanwhile()
        return replace(former, machine=started([]).machine, base=None)

    def has_room_like(self, former):
        assert isinstance(former, Started)
        return self.has_disk_room

    def start_like(self, former, request):
        self.models.append(former)
        return replace(started([]), request=request)


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
    second: list[Future[Any]] = []

    def another_comes() -> None:
        assert not second, "the other one starts the machine, too"
        second.append(pool.submit(machines.start_again))
        assert wait(second, timeout=0.3).not_done, "the other one did not wait"

    starter.meanwhile = another_comes
    with ThreadPoolExecutor() as pool:
        first = machines.start_again()
        with pytest.raises(GuestError, match="web is on already"):
            second[0].result()
    assert leads_to == [first]
    assert machines.current.machine is first


def test_a_machine_that_was_refused_can_be_started_again(machines, starter, leads_to):
    def refuse() -> None:
        raise DomainFailed("QEMU refused")

    starter.meanwhile = refuse
    with pytest.raises(DomainFailed):
        machines.start_again()
    assert leads_to == []
    starter.meanwhile = nothing
    assert [machines.start_again()] == leads_to


def test_a_machine_of_another_kind_is_no_model_for_those_that_follow_a_reset(machines, starter, leads_to):
    first, removed = machines.current, []
    other = started(removed)
    assert machines.replace_current(other) is first
    assert machines.current is other
    assert leads_to == [other.machine]
    machines.start_another()
    assert removed == ["former"]
    second = machines.current
    machines.start_another()
    assert starter.models == [first, second]


@pytest.mark.parametrize(("has_room", "has_disk_room"), [(True, True), (False, True), (True, False)])
def test_where_there_is_no_room_for_both_machines_the_former_goes_first(
    machines, starter, has_room, has_disk_room
):
    starter.has_disk_room = has_disk_room
    first, removed = machines.current, []
    first.undo.callback(removed.append, "first")
    room = FreeAdmission()
    room.is_full = not has_room
    machines._current = replace(first, request=replace(first.request, room=room.room("web")))
    at_start = []
    start_like = starter.start_like

    def start(former, request):
        at_start.extend(removed)
        return start_like(former, request)

    starter.start_like = start
    machines.start_another()
    assert at_start == ([] if has_room and has_disk_room else ["first"])
    assert removed == ["first"]


def test_no_two_machines_of_a_guest_have_the_same_place(machines):
    places = {str(machines.successor().place), str(machines.successor().place)}
    machines.start_another()
    places.add(str(machines.current.request.place))
    assert len(places) == 3
