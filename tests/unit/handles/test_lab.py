"""Labs, without guests: who is in one, and which savepoint is the newest."""

from __future__ import annotations

from concurrent.futures import Future

import pytest

import pytest_kvm as kvm
from pytest_kvm.errors import GuestGone, SavepointGone, SpecError
from pytest_kvm.hypervisor.protocol import DomainState
from pytest_kvm.machine import savepoints
from tests.fakes import FakeDomain, FakeShell, fake_machine


@pytest.fixture
def guests():
    return [kvm.Guest(name, Future()) for name in ("a", "b", "c")]


def test_each_guest_is_in_it_once(guests, monkeypatch):
    a, b, c = guests
    lan = kvm.Segment.__new__(kvm.Segment)
    monkeypatch.setattr(kvm.Segment, "guests", [b, a])
    lab = kvm.lab(a, lan, c)
    assert lab.guests == (a, b, c)
    assert repr(lab) == "<Lab of a, b, c>"


def test_other_members_are_refused(guests):
    with pytest.raises(SpecError, match="lab: 'a' is neither a guest nor a segment"):
        kvm.lab(guests[0], "a")
    with pytest.raises(SpecError, match="lab: no guests"):
        kvm.lab()


def test_a_segment_without_guests_is_no_lab(monkeypatch):
    monkeypatch.setattr(kvm.Segment, "guests", [])
    lab = kvm.lab(kvm.Segment.__new__(kvm.Segment))
    for verb in (lab.savepoint, lab.pause, lab.resume):
        with pytest.raises(SpecError, match="there are no guests on its segments"):
            verb()
    with pytest.raises(SavepointGone, match="has no savepoint"):
        lab.restore()


@pytest.fixture
def running(tmp_path):
    """Return three guests that run."""
    guests = []
    for name in ("a", "b", "c"):
        (tmp_path / name).mkdir()
        boot = Future()
        boot.set_result(fake_machine(tmp_path / name, domain=FakeDomain(name), shell=FakeShell()))
        guests.append(kvm.Guest(name, boot))
    return guests


def states(guests):
    return [guest.machine.domain.state() for guest in guests]


def test_whoever_is_paused_goes_on(running, monkeypatch):
    renewed = []
    monkeypatch.setattr(savepoints, "renew", lambda machine, prestarted: renewed.append(machine.name))
    a, b, c = running
    lab = kvm.lab(a, b, c)
    b.pause()
    lab.pause()
    assert states(running) == [DomainState.PAUSED] * 3
    a.resume()
    c.machine.renewal_due.set()
    lab.resume()
    lab.resume()
    assert states(running) == [DomainState.RUNNING] * 3
    assert renewed == ["c"]


def test_one_that_a_reset_has_dropped_is_not_the_newest(running, monkeypatch):
    monkeypatch.setattr(savepoints, "renew", lambda machine, prestarted: None)
    monkeypatch.setattr(savepoints, "prestart", lambda machine: None)
    lab = kvm.lab(*running)
    lab.savepoint("of the fixture")
    machine = running[1].machine
    savepoints.take([machine], "kvm-1")
    newest = lab.savepoint("of a test")
    savepoints.restore([(machine, "kvm-1")])
    savepoints.drop_later(machine, "kvm-1")
    assert newest.is_dropped
    machine.domain.done.clear()
    lab.restore()
    [loaded] = [step for step in machine.domain.done if step.startswith("load")]
    assert loaded.removeprefix("load ") == next(iter(machine.savepoints))


@pytest.mark.parametrize("verb", ["pause", "resume"])
def test_one_that_has_ended_is_named_before_anything_is_done(running, verb):
    lab = kvm.lab(*running)
    running[1].machine.domain.end("guest shutdown")
    before = states(running)
    with pytest.raises(GuestGone, match="b has ended: guest shutdown"):
        getattr(lab, verb)()
    assert states(running) == before
