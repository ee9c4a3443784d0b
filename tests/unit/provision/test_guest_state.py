"""What becomes of a guest that cannot be put back."""

from __future__ import annotations

from concurrent.futures import Future
from types import SimpleNamespace
from typing import Any

import pytest

from pytest_kvm.errors import GuestError, SavepointRefused, SnapshotFailed
from pytest_kvm.handles.guest import Guest, replace_machine
from pytest_kvm.provision import guest_state as state_module
from pytest_kvm.provision.guest_links import GuestLinks
from pytest_kvm.provision.guest_machines import GuestMachines
from pytest_kvm.provision.guest_state import GuestState
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


@pytest.mark.parametrize("failure", [SnapshotFailed, SavepointRefused, GuestError])
def test_a_guest_that_cannot_be_put_back_is_begun_anew(monkeypatch, caplog, failure):
    def refuse(machine, name):
        raise failure("web: a device is in the way")

    removed: list[str] = []
    fresh = started(removed)
    first = future_of(started(removed))
    starter: Any = SimpleNamespace(get=lambda: SimpleNamespace(start_like=lambda former, request: fresh))
    monkeypatch.setattr(state_module.savepoints, "restore", refuse)
    guest = Guest("web", Future())
    switch: Any = None  # a guest without cards on segments asks nothing of it
    links = GuestLinks(switch, [])
    machines = GuestMachines(first, starter, lead_handle_to=lambda machine: replace_machine(guest, machine))
    state = GuestState(machines, links=links)
    assert state.restore(state.base) == "cold"
    assert guest.machine is fresh.machine
    assert removed == ["former"]
    assert "web: begun anew, for it could not be put back: web: a device is in the way" in caplog.text
