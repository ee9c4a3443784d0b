"""A guest that somebody waits for: the wait ends, whatever happens on the way."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import pytest_kvm as kvm
from pytest_kvm.errors import BootFailed, GuestGone, MissingDependency
from pytest_kvm.provision import guest_boot as boot_module
from pytest_kvm.provision.guest_boot import GuestBoot
from pytest_kvm.provision.start_request import Place
from pytest_kvm.render.domain_draft import draft_domain
from pytest_kvm.settings import Settings
from tests.unit.provision.free_rooms import free_room

WITHIN = 60
MACHINE = SimpleNamespace(folder=Path("/nonexistent"))
STARTED: Any = SimpleNamespace(seconds=1.0, machine=MACHINE, events=())


class Progress:
    """Raises when it is told of an end."""

    def phase(self, subject, phase):
        pass

    def finished(self, subject, outcome):
        raise BrokenPipeError


class Starter:
    """Starts guests, or fails to."""

    def __init__(self, failure=None, *, refusal=None):
        self.failure = failure
        self.refusal = refusal

    def get(self):
        if self.refusal:
            raise self.refusal
        return self

    def draft(self, spec, image):
        return draft_domain(spec, accel="tcg", direct_boot=None)

    def start(self, request):
        if self.failure:
            raise self.failure
        return STARTED


def ignore(event):
    pass


def refuse(event):
    raise OSError("no space left")


@pytest.fixture
def start(monkeypatch, tmp_path):
    image = SimpleNamespace(built_from_packages=False)
    monkeypatch.setattr(boot_module, "ensure", lambda *_, **__: image)

    def start(starter, *, progress, tell=ignore):
        boot = GuestBoot(
            Settings(cache_dir=tmp_path, run_dir=tmp_path),
            starter,
            kvm.GuestSpec(),
            place=Place("web"),
            room=free_room("web"),
            resets=True,
            progress=progress,
            tell=tell,
        )
        boot.start()
        return boot

    return start


def test_progress_that_cannot_be_shown_fails_no_boot(start, caplog):
    boot = start(Starter(), progress=Progress())
    assert boot.machine.result(WITHIN) is MACHINE
    assert boot.started.result(WITHIN) is STARTED
    assert "web: its end could not be told" in caplog.text
    assert "BrokenPipeError" in caplog.text


@pytest.mark.parametrize("failure", [BootFailed("no sshd"), KeyError("oops")], ids=["of the guest", "a bug"])
@pytest.mark.parametrize("tell", [ignore, refuse], ids=["told", "not told"])
def test_a_failure_that_cannot_be_told_is_raised_by_who_waits(start, failure, tell):
    boot = start(Starter(failure), progress=Progress(), tell=tell)
    assert boot.machine.exception(WITHIN) is failure
    assert boot.started.exception(WITHIN) is failure


def test_a_host_that_runs_no_guests_builds_no_image(start, monkeypatch):
    built = []
    monkeypatch.setattr(boot_module, "ensure", lambda *_, **__: built.append("an image"))
    boot = start(Starter(refusal=MissingDependency("no QEMU")), progress=Progress())
    assert isinstance(boot.started.exception(WITHIN), MissingDependency)
    assert built == []


def test_a_run_that_ends_while_an_image_is_built_starts_nothing(start, monkeypatch):
    starter = Starter()

    def ensure(*_, **__):
        starter.refusal = GuestGone("the run has ended")
        return SimpleNamespace(built_from_packages=False)

    monkeypatch.setattr(boot_module, "ensure", ensure)
    assert isinstance(start(starter, progress=Progress()).started.exception(WITHIN), GuestGone)
