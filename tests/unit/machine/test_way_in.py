"""How far a guest's clock is ahead of the host's."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from pytest_kvm.machine import way_in
from tests.fakes import LocalShell, fake_machine


@pytest.mark.parametrize("waited", [[0.2], [3.0, 0.7]])
def test_a_late_answer_does_not_make_the_guests_clock_seem_ahead(tmp_path, domain, monkeypatch, waited):
    """What is asked for since a moment must not begin later than that."""
    now = 1000.0
    answers = iter(waited)

    def monotonic():
        return now

    shell = LocalShell({}, folder=tmp_path / "programs")
    run = shell.run

    def answer_late(command, **options):
        nonlocal now
        now += next(answers)
        return run(["echo", f"{now + 5:.0f} 500000000"], **options)

    monkeypatch.setattr(way_in, "time", SimpleNamespace(monotonic=monotonic))
    monkeypatch.setattr(shell, "run", answer_late)
    found = way_in.find_way_in(fake_machine(tmp_path, domain=domain, shell=shell), None, until=now + 60)
    assert found.clock == round(now + 5) + 0.5 - now
    assert next(answers, None) is None
