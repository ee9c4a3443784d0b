"""What the run does before a guest boots."""

from __future__ import annotations

import re
from concurrent.futures import Future
from contextlib import closing, nullcontext
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

import pytest_kvm as kvm
from pytest_kvm.errors import GuestGone, SpecError, SwitchFailed
from pytest_kvm.handles.guest import Guest
from pytest_kvm.hypervisor.protocol import DomainState
from pytest_kvm.options import settings_from
from pytest_kvm.provision.admission_rules import NOTHING
from pytest_kvm.provision.guest_boot import GuestBoot
from pytest_kvm.provision.reset_coordinator import ResetCoordinator
from pytest_kvm.provision.run import Run
from pytest_kvm.provision.run_resources import Lazy


def test_a_guest_whose_neighbours_are_out_of_reach_is_not_left_on_its_segment(monkeypatch):
    def fail(guest):
        assert lan.guests == [guest]
        raise SwitchFailed("the switch of this run has ended")

    coordinator = ResetCoordinator()
    monkeypatch.setattr(coordinator, "before_use", fail)
    progress: Any = SimpleNamespace()
    with closing(Run(settings_from([]), progress=progress, coordinator=coordinator)) as run:
        lan = run.segments.make("lan", kvm.NetworkSpec())
        for _ in range(2):
            with pytest.raises(SwitchFailed, match="the switch of this run has ended"):
                run.start(kvm.GuestSpec(nics=[kvm.Nic(lan)]), name="web")
            assert lan.guests == []


def test_a_guest_that_its_segment_refuses_takes_nothing_of_what_is_reserved(tmp_path, monkeypatch):
    def refuse(*_arguments, **_named):
        raise SpecError("another guest has this address")

    progress: Any = SimpleNamespace()
    settings = replace(settings_from([]), limits_dir=tmp_path / "limits")
    with closing(Run(settings, progress=progress, coordinator=ResetCoordinator())) as run:
        monkeypatch.setattr(run.segments, "join", refuse)
        run.reserve([kvm.GuestSpec()], peak=NOTHING, is_wide=False)
        with pytest.raises(SpecError):
            run.start(kvm.GuestSpec(), name="web")
        assert [grant.name for grant in run._admission._me().grants] == ["reserved"]
        run.end_reservation()
        assert run._admission._me().grants == ()


def test_a_guest_whose_start_fails_is_not_left_in_the_run(monkeypatch, tmp_path):
    def fail(_boot, *_arguments, **_named):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(GuestBoot, "start", fail)
    progress: Any = SimpleNamespace()
    coordinator = ResetCoordinator()
    settings = replace(settings_from([]), limits_dir=tmp_path / "limits")
    with closing(Run(settings, progress=progress, coordinator=coordinator)) as run:
        with pytest.raises(RuntimeError, match="can't start new thread"):
            run.start(kvm.GuestSpec(), name="web")
        assert not run._boots


class Progress:
    """Remembers what it was told."""

    def __init__(self) -> None:
        self.told: list[str] = []

    def phase(self, subject: str, phase: str) -> None:
        self.told.append(f"{subject}: {phase}")

    finished = phase


@pytest.fixture
def progress():
    return Progress()


@pytest.fixture
def events():
    return []


@pytest.fixture
def run(progress, events):
    settings, coordinator = settings_from([]), ResetCoordinator()
    with closing(Run(settings, progress=progress, coordinator=coordinator, tell=events.append)) as run:
        yield run


def nothing():
    """Form nothing."""


def machines(alive):
    """Return a guest's machines, of which the current one runs by itself or is off."""
    domain = SimpleNamespace(
        alive=lambda: alive, state=lambda: DomainState.RUNNING, end_reason=lambda: "destroyed"
    )
    machine = SimpleNamespace(name="one", domain=domain, at_work=[])
    return SimpleNamespace(current=SimpleNamespace(machine=machine))


@pytest.fixture
def lan(run):
    return run.segments.make("lan", kvm.NetworkSpec())


@pytest.fixture
def one(run, lan, monkeypatch):
    """A guest on a segment; why it can have no template, its coordinator says."""
    machine: Future[Any] = Future()
    machine.set_result(None)
    guest = Guest("one", machine)
    monkeypatch.setattr(guest, "wait_ready", nothing)
    guest.nics = [SimpleNamespace(segment=lan)]
    run._machines[guest] = machines(alive=True)
    monkeypatch.setattr(run, "_starter", Lazy(lambda: nullcontext(SimpleNamespace(labs=None))))
    return guest


def form(run, guest, function, digest=lambda: "digest"):
    run.form([guest], name="pair", function=function, digest=digest)


def test_a_lab_without_a_template_is_formed_and_its_reason_told(run, one, progress, events):
    form(run, one, nothing)
    [event] = events
    assert (event.guest, event.kind, event.why) == ("pair", "forming", "one is not reset")
    assert progress.told[:2] == ["pair: waiting for its guests", "pair: forming"]
    assert re.fullmatch(r"pair: ready after \d+\.\d s", progress.told[2])


def test_a_lab_whose_forming_fails_is_not_under_way_any_more(run, one, progress, events):
    def fail():
        raise ValueError("of the user")

    with pytest.raises(ValueError, match="of the user"):
        form(run, one, fail)
    assert progress.told[-1] == "pair: failed: ValueError"
    assert events == []


def test_what_a_lab_depends_on_is_looked_at_before_its_guests_are_waited_for(run, one, progress):
    def digest():
        raise SpecError("depends_on[0]: x does not exist")

    with pytest.raises(SpecError, match="x does not exist"):
        form(run, one, nothing, digest)
    assert progress.told == []


def test_a_fault_that_a_lab_template_leaves_is_an_error_also_if_there_is_no_template(run, one, lan):
    lan.loss(0.1)
    form(run, one, nothing)
    with pytest.raises(SpecError, match=r"the lab template pair has left faults: .*delay"):
        form(run, one, lambda: lan.delay(0.1))

    def undone():
        lan.delay(0.2).undo()

    form(run, one, undone)


def test_a_guest_that_a_lab_template_leaves_off_is_an_error_also_if_there_is_no_template(run, one):
    def switch_off():
        run._machines[one] = machines(alive=False)

    with pytest.raises(SpecError, match="has left one off"):
        form(run, one, switch_off)


def test_a_lab_of_a_guest_that_was_removed_says_so(run, one):
    with pytest.raises(GuestGone, match="one was removed"):
        form(run, one, run._machines.clear)
