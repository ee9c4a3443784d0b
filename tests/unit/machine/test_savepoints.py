"""Savepoints, without a guest: what is refused, in which order things end."""

from __future__ import annotations

from concurrent.futures import Future

import pytest

from pytest_kvm.errors import GuestGone, SavepointGone, SavepointRefused, SnapshotFailed
from pytest_kvm.handles.callbacks import Callbacks
from pytest_kvm.handles.guest import Guest, replace_machine
from pytest_kvm.machine import savepoints
from pytest_kvm.machine.renewal import Prestarted
from tests.fakes import FakeDomain, FakeShell, fake_machine

PRESTARTED = Prestarted(7, 8)


class Thing:
    """Something that is open in the guest."""

    def __init__(self, name, events):
        self._name = name
        self._events = events

    def close(self):
        self._events.append(f"close {self._name}")

    def __repr__(self):
        return f"<{self._name}>"


@pytest.fixture
def events(domain, shell, monkeypatch):
    """What is done, in order, by domain, shell and renewal alike."""
    monkeypatch.setattr(shell, "close", lambda: domain.done.append("hang up"))
    monkeypatch.setattr(
        savepoints,
        "renew",
        lambda _machine, prestarted=None: domain.done.append(f"renew {prestarted and prestarted.pid}"),
    )
    monkeypatch.setattr(savepoints, "prestart", lambda _machine: domain.done.append("prestart") or PRESTARTED)
    return domain.done


@pytest.fixture
def guest(machine):
    boot = Future()
    boot.set_result(machine)
    uses = []
    guest = Guest("web", boot, callbacks=Callbacks(before_use=lambda guest: uses.append("use")))
    guest.uses = uses
    return guest


def test_taking_one_leaves_a_helper_in_it_and_none_behind(machine, events):
    savepoints.take(machine, "s")
    assert events == ["prestart", "take s", "renew 7"]


def test_without_a_helper_the_clock_is_put_right_as_well(machine, events, monkeypatch):
    monkeypatch.setattr(savepoints, "prestart", lambda _machine: None)
    savepoints.take(machine, "s")
    assert events == ["take s", "renew None"]


def test_a_helper_is_not_left_behind_where_nothing_was_taken(machine, events, monkeypatch):
    def failing(_name):
        raise SnapshotFailed("no room")

    monkeypatch.setattr(machine.domain, "take_snapshot", failing)
    with pytest.raises(SnapshotFailed, match="no room"):
        savepoints.take(machine, "s")
    assert events == ["prestart", "renew 7"]


def test_restoring_ends_what_came_later_and_renews(machine, events):
    savepoints.take(machine, "s")
    events.clear()
    machine.open_resources.register(lambda: [Thing("one", events), Thing("two", events)])
    savepoints.restore(machine, "s")
    assert events == ["load s", "close one", "close two", "hang up", "renew 7"]


def test_what_is_at_work_is_named(machine, shell, events):
    shell.processes = (Thing("a process", events),)
    machine.open_resources.register(lambda: [Thing("a port", events)])
    with pytest.raises(SavepointRefused, match="at work in the guest: <a process>, <a port>"):
        savepoints.take(machine, "s")
    assert events == []


def test_a_forwarded_port_is_at_work_while_it_is_open(machine, events, monkeypatch):
    monkeypatch.setattr(type(machine.forwards), "open", ("<Forward 127.0.0.1:40001>",))
    with pytest.raises(SavepointRefused, match=r"40001"):
        savepoints.take(machine, "s")


def test_a_paused_guest_is_renewed_when_it_goes_on(machine, guest, events):
    machine.domain.suspend()
    savepoints.take(machine, "s")
    savepoints.restore(machine, "s")
    assert events == ["suspend", "take s", "load s", "hang up"]
    guest.resume()
    guest.pause()
    guest.resume()
    assert events[4:] == ["resume", "renew None", "suspend", "resume"]


def test_a_guest_that_ended_has_none(machine, domain, events):
    savepoints.take(machine, "s")
    domain.end("guest shutdown")
    events.clear()
    with pytest.raises(GuestGone, match="guest shutdown"):
        savepoints.take(machine, "t")
    with pytest.raises(SavepointGone, match="guest shutdown"):
        savepoints.restore(machine, "s")
    savepoints.drop(machine, "s")
    assert events == []


def test_by_hand_it_is_a_value_and_each_call_that_changes_the_guest_a_use(guest, events):
    first, second = guest.savepoint(), guest.savepoint("before the upgrade")
    assert repr(second) == "<Savepoint before the upgrade of web>"
    assert first.name.startswith("savepoint ")
    first.restore()
    assert guest.uses == ["use"] * 3
    second.drop()
    second.drop()
    assert repr(second) == "<Savepoint before the upgrade of web, dropped>"
    assert guest.uses == ["use"] * 3
    verbs = [event.split()[0] for event in events]
    assert verbs == ["prestart", "take", "renew"] * 2 + ["load", "hang", "renew", "drop"]
    with pytest.raises(SavepointGone, match="before the upgrade was dropped"):
        second.restore()


def test_a_block_ends_with_restore_and_drop(guest, events):
    with guest.savepoint():
        events.clear()
    assert [event.split()[0] for event in events] == ["load", "hang", "renew", "drop"]


def test_one_that_was_dropped_in_its_block_stays_dropped(guest, events):
    with guest.savepoint() as point:
        point.drop()
        events.clear()
    assert events == []


def test_a_block_that_fails_on_a_guest_that_died_tells_its_own_failure(guest, domain, events):
    with pytest.raises(ZeroDivisionError), guest.savepoint():
        fail_with(domain)


def fail_with(domain):
    domain.end("destroyed")
    raise ZeroDivisionError


def test_a_block_on_a_guest_that_died_quietly_says_so(guest, domain, events):
    with pytest.raises(SavepointGone), guest.savepoint():
        domain.end("destroyed")


def test_one_of_a_former_machine_is_gone(guest, events, tmp_path):
    point = guest.savepoint()
    (tmp_path / "other").mkdir()
    boot = Future()
    boot.set_result(fake_machine(tmp_path / "other", domain=FakeDomain(), shell=FakeShell()))
    replace_machine(guest, boot)
    with pytest.raises(SavepointGone, match="was reset, or switched off, meanwhile"):
        point.restore()
    point.drop()
    assert events[-1].startswith("drop hand-")
