from __future__ import annotations

import pytest

from pytest_kvm.errors import DomainFailed, EmergencyMode, SshNeverAnswered
from pytest_kvm.machine.suspicion import Suspicion

STATE = "systemctl is-system-running"
FAILED = "systemctl list-units --failed --no-legend --plain --no-pager"


@pytest.fixture
def asked(climb, domain):
    """Ask once per second for a minute, with the answers given."""

    def ask(*states, failed=""):
        domain.agent_runs({STATE: list(states), FAILED: failed})
        now = iter(range(1000))
        suspicion = Suspicion(climb, clock=lambda: next(now) / 3)
        for _ in range(200):
            suspicion("nothing listens on port 22")

    return ask


def test_a_guest_without_an_agent_is_waited_for(climb):
    suspicion = Suspicion(climb, clock=iter(range(0, 10000, 10)).__next__)
    for _ in range(50):
        suspicion("nothing")


def test_a_qemu_that_ends_while_it_is_asked_is_for_others_to_tell(climb, domain, monkeypatch):
    def gone(*_, **__):
        raise DomainFailed("requested operation is not valid: domain is not running")

    monkeypatch.setattr(domain, "agent", gone)
    suspicion = Suspicion(climb, clock=iter(range(0, 10000, 10)).__next__)
    for _ in range(50):
        suspicion("nothing")


def test_a_guest_that_still_starts_is_waited_for(asked):
    asked(*["starting"] * 20)


def test_a_guest_that_has_finished_without_sshd_is_given_up(asked):
    with pytest.raises(
        SshNeverAnswered, match=r"finished booting \(degraded\).*port 22(.|\n)*ssh.service failed"
    ):
        asked("starting", "degraded", "degraded", failed="ssh.service failed")


def test_one_look_is_not_enough_to_give_up(asked):
    with pytest.raises(IndexError):  # a third look was wanted
        asked("running", "starting")


def test_rescue_mode_is_told(asked):
    with pytest.raises(EmergencyMode, match="rescue or emergency mode"):
        asked("maintenance")
