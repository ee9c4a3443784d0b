"""What becomes of a guest that cannot be put back."""

from __future__ import annotations

from concurrent.futures import Future
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from pytest_kvm.errors import (
    BootFailed,
    DomainFailed,
    GuestError,
    GuestGone,
    SavepointRefused,
    SnapshotFailed,
    SwitchFailed,
)
from pytest_kvm.handles.guest import Guest, replace_machine
from pytest_kvm.hypervisor.protocol import DomainState
from pytest_kvm.machine import savepoints
from pytest_kvm.provision.guest_links import GuestLinks
from pytest_kvm.provision.guest_machines import GuestMachines
from pytest_kvm.provision.guest_state import GuestState
from pytest_kvm.provision.restorable_state import Traffic
from tests.fakes import FakeDomain, FakeShell, fake_machine
from tests.unit.provision.started_machines import future_of, started


def test_a_guest_that_is_off_has_no_savepoint():
    starter: Any = None
    machines = GuestMachines(
        future_of(started([], is_on=False)), starter, lead_handle_to=lambda machine: None
    )
    state = GuestState(machines, links=GuestLinks([]))
    [refusal] = state.take_all([state])
    assert isinstance(refusal, SavepointRefused)
    assert refusal.brief == "web is off (guest shutdown)"


@pytest.mark.parametrize("failure", [SnapshotFailed, SavepointRefused, GuestError, DomainFailed])
def test_a_guest_that_cannot_be_put_back_is_begun_anew(monkeypatch, caplog, failure):
    removed: list[str] = []
    fresh = started(removed)
    first = future_of(started(removed))
    starts = SimpleNamespace(start_like=lambda former, request: fresh, has_room_like=lambda former: True)
    starter: Any = SimpleNamespace(get=lambda: starts)
    refusal = failure("web: a device is in the way")
    monkeypatch.setattr(savepoints, "restore_possible", lambda points: [refusal])
    guest = Guest("web", Future())
    links = GuestLinks([])
    machines = GuestMachines(first, starter, lead_handle_to=lambda machine: replace_machine(guest, machine))
    state = GuestState(machines, links=links)
    assert [each.tier for each in state.restore_all([(state, state.base)])] == ["cold"]
    assert guest.machine is fresh.machine
    assert removed == ["former"]
    assert "web: begun anew, for it could not be put back: web: a device is in the way" in caplog.text


# ------------------------------------------------------------ several guests


@pytest.fixture
def states(tmp_path, monkeypatch):
    """Return three states of guests that run, each with a savepoint "base" from when it became ready."""
    monkeypatch.setattr(savepoints, "renew", lambda machine, prestarted=None: None)
    monkeypatch.setattr(savepoints, "prestart", lambda machine: None)
    made = []
    for name in ("a", "b", "c"):
        (tmp_path / name).mkdir()
        links: Any = FakeGuestLinks()
        machine = fake_machine(tmp_path / name, domain=FakeDomain(name), shell=FakeShell())
        machine = replace(machine, links=links)
        savepoints.take([machine], "base")
        begun = machine.domain.done

        def start_another(begun=begun):
            begun.append("begin anew")
            return "cold"

        current = SimpleNamespace(machine=machine, base="base")
        machines: Any = SimpleNamespace(
            current=current, when_ready=lambda action: action(), start_another=start_another
        )
        made.append(GuestState(machines, links=links))
    return made


class FakeGuestLinks:
    """Links that nothing has passed."""

    def __init__(self):
        self.are_detached = False

    def traffic(self):
        return Traffic(0, 0)

    def detach(self):
        self.are_detached = True

    def attach(self, _machine):
        self.are_detached = False

    def drop_frames(self, _machine):
        """Do nothing."""


def domain_of(state):
    return state.machines.current.machine.domain


def fail_with(error):
    def fail(_name):
        raise error

    return fail


def test_one_that_cannot_be_saved_keeps_none_of_the_others_from_it(states):
    domain_of(states[1]).take_snapshot = fail_with(SavepointRefused("b: a raw disk"))
    a, b, c = states[0].take_all(states)
    assert isinstance(b, SavepointRefused)
    for state, point in ((states[0], a), (states[2], c)):
        assert state.reaches(point)
        assert domain_of(state).state() is DomainState.RUNNING
    assert domain_of(states[1]).state() is DomainState.RUNNING


def test_they_are_loaded_before_one_goes_on(states):
    points = states[0].take_all(states)
    order = []
    for state in states:
        domain = domain_of(state)
        domain.load_snapshot = lambda name, domain=domain: (order.append("load"), domain.suspend())
        domain.resume = lambda domain=domain: order.append("resume")
    outcomes = states[0].restore_all([*zip(states, points, strict=True)])
    assert [each.tier for each in outcomes] == ["load"] * 3
    assert order == ["load"] * 3 + ["resume"] * 3


def test_one_that_cannot_be_loaded_leaves_the_others_as_they_are_restored(states):
    points = states[0].take_all(states)
    domain_of(states[1]).load_snapshot = fail_with(SnapshotFailed("b: a broken disk"))
    for state in states:
        domain_of(state).done.clear()
    a, b, c = states[0].restore_all([*zip(states, points, strict=True)])
    assert (a.tier, c.tier) == ("load", "load")
    assert isinstance(b, SnapshotFailed)
    for state in (states[0], states[2]):
        assert [each.split()[0] for each in domain_of(state).done].count("load") == 1
    assert "begin anew" not in domain_of(states[1]).done, "a fixture's changes would be lost silently"


def test_one_whose_base_cannot_be_loaded_is_begun_anew(states, caplog):
    domain_of(states[1]).load_snapshot = fail_with(SnapshotFailed("b: a broken disk"))
    outcomes = states[0].restore_all([(each, each.base) for each in states])
    assert [each.tier for each in outcomes] == ["load", "cold", "load"]
    assert "b: begun anew, for it could not be put back: b: a broken disk" in caplog.text


def test_one_that_is_off_has_lost_its_points_but_its_base(states):
    points = states[0].take_all(states)
    domain_of(states[2]).end("guest shutdown")
    a, _, c = states[0].restore_all([*zip(states, points, strict=True)])
    assert a.tier == "load"
    assert isinstance(c, SnapshotFailed)
    assert [each.tier for each in states[2].restore_all([(states[2], states[2].base)])] == ["cold"]


def test_one_whose_boot_has_failed_fails_alone(states):
    class Failed:
        @property
        def current(self):
            raise BootFailed("b: no banner")

    machines: Any = Failed()
    states[1].machines = machines
    a, b, c = states[0].take_all(states)
    assert isinstance(b, BootFailed)
    assert states[0].reaches(a)
    outcomes = states[0].restore_all([(each, each.base) for each in states])
    assert [isinstance(each, BootFailed) for each in outcomes] == [False, True, False]
    assert c is not None


def test_one_that_cannot_be_renewed_is_cut_off(states, monkeypatch):
    points = states[0].take_all(states)
    machines = [each.machines.current.machine for each in states]

    def renew(machine, prestarted=None):
        if machine is machines[1]:
            raise GuestError("b: no answer")

    monkeypatch.setattr(savepoints, "renew", renew)
    outcomes = states[0].restore_all([*zip(states, points, strict=True)])
    assert [isinstance(each, GuestError) for each in outcomes] == [False, True, False]
    assert [each.links.are_detached for each in machines] == [False, True, False]


def test_one_that_was_removed_meanwhile_is_not_cut_off(states):
    machines = states[0].machines
    machines.current.base = None

    def start_another():
        raise GuestGone("a was removed")

    machines.start_another = start_another
    states[0].machines.current.machine.links.detach = lambda: calls.append("detach")
    calls: list[str] = []
    [outcome] = states[0].restore_all([(states[0], states[0].base)])
    assert isinstance(outcome, GuestGone)
    assert calls == ["detach"]


def test_a_savepoint_that_cannot_be_dropped_is_forgotten(states, caplog):
    state = states[0]
    [point] = state.take_all([state])
    domain_of(state).drop_snapshot = fail_with(SnapshotFailed("a: a broken disk"))
    state.drop(point)
    assert [*state.machines.current.machine.savepoints] == ["base"]
    assert "a broken disk" in caplog.text


def test_a_savepoint_of_a_guest_that_has_ended_is_not_dropped(states, caplog):
    state = states[0]
    [point] = state.take_all([state])
    domain_of(state).end("guest shutdown")
    domain_of(state).drop_snapshot = fail_with(DomainFailed("a: QEMU has ended"))
    state.drop(point)
    assert not caplog.text


@pytest.mark.parametrize("failure", [SwitchFailed, GuestGone])
def test_one_that_becomes_ready_when_the_run_ends_is_no_error(failure):
    def traffic():
        raise failure("it has ended")

    machines: Any = SimpleNamespace(when_ready=lambda action: action())
    links: Any = SimpleNamespace(traffic=traffic)
    assert GuestState(machines, links=links).traffic_at_base is None


def test_savepoints_of_a_test_go_with_the_reset(states):
    state = states[0]
    machine = state.machines.current.machine
    savepoints.take([machine], "hand-1", by_hand=True)
    state.restore_all([(state, state.base)])
    assert [*machine.savepoints] == ["base"]


@pytest.mark.parametrize("is_base", [True, False])
def test_savepoints_that_a_test_has_taken_go_with_its_changes(states, is_base):
    state = states[0]
    [point] = [state.base] if is_base else state.take_all([state])
    machine = state.machines.current.machine
    savepoints.take([machine], "hand-1", by_hand=True)
    [restored] = state.restore_all([(state, point)])
    assert restored.tier == "load"
    assert "hand-1" not in machine.savepoints
    assert machine.domain.done[-1] == "drop hand-1"
