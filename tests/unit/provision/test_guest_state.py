"""What becomes of a guest that cannot be put back."""

from __future__ import annotations

from concurrent.futures import Future
from types import SimpleNamespace
from typing import Any

import pytest

from pytest_kvm.errors import DomainFailed, GuestError, SavepointRefused, SnapshotFailed
from pytest_kvm.handles.guest import Guest, replace_machine
from pytest_kvm.machine import savepoints
from pytest_kvm.provision.guest_links import GuestLinks
from pytest_kvm.provision.guest_machines import GuestMachines
from pytest_kvm.provision.guest_state import GuestState
from tests.fakes import FakeDomain, FakeShell, fake_machine
from tests.unit.provision.started_machines import future_of, started


def test_a_guest_that_is_off_has_no_savepoint():
    starter: Any = None
    switch: Any = None
    machines = GuestMachines(
        future_of(started([], is_on=False)), starter, lead_handle_to=lambda machine: None
    )
    state = GuestState(machines, links=GuestLinks(switch, []))
    with pytest.raises(SavepointRefused, match=r"web is off \(guest shutdown\)"):
        state.take()


@pytest.mark.parametrize("failure", [SnapshotFailed, SavepointRefused, GuestError, DomainFailed])
def test_a_guest_that_cannot_be_put_back_is_begun_anew(monkeypatch, caplog, failure):
    removed: list[str] = []
    fresh = started(removed)
    first = future_of(started(removed))
    starter: Any = SimpleNamespace(get=lambda: SimpleNamespace(start_like=lambda former, request: fresh))
    refusal = failure("web: a device is in the way")
    monkeypatch.setattr(savepoints, "restore_possible", lambda points: [refusal])
    guest = Guest("web", Future())
    switch: Any = None  # a guest without cards on segments asks nothing of it
    links = GuestLinks(switch, [])
    machines = GuestMachines(first, starter, lead_handle_to=lambda machine: replace_machine(guest, machine))
    state = GuestState(machines, links=links)
    assert state.restore(state.base) == "cold"
    assert guest.machine is fresh.machine
    assert removed == ["former"]
    assert "web: begun anew, for it could not be put back: web: a device is in the way" in caplog.text


@pytest.fixture
def machine(tmp_path, monkeypatch):
    monkeypatch.setattr(savepoints, "renew", lambda machine, prestarted=None: None)
    monkeypatch.setattr(savepoints, "prestart", lambda machine: None)
    return fake_machine(tmp_path, domain=FakeDomain("web"), shell=FakeShell())


@pytest.fixture
def state(machine):
    """Return the state of a guest that has booted cold, so its base is a savepoint."""
    savepoints.take([machine], "kvm-base")
    machines: Any = SimpleNamespace(current=SimpleNamespace(machine=machine, base="kvm-base"))
    links: Any = None
    return GuestState(machines, links=links)


@pytest.mark.parametrize("is_base", [True, False])
def test_savepoints_that_a_test_has_taken_go_with_its_changes(state, machine, is_base):
    point = state.base if is_base else state.take()
    savepoints.take([machine], "hand-1", by_hand=True)
    assert state.restore(point) == "load"
    assert "hand-1" not in machine.savepoints
    assert machine.domain.done[-1] == "drop hand-1"


def test_one_that_cannot_be_put_back_is_cut_off(state, machine):
    point = state.take()
    machine.domain.devices_changed = True
    machine.domain.done.clear()
    with pytest.raises(SavepointRefused):
        state.restore(point)
    assert machine.domain.done == ["detach"]
