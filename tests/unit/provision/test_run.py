"""What the run does before a guest boots."""

from __future__ import annotations

from contextlib import closing
from types import SimpleNamespace
from typing import Any

import pytest

import pytest_kvm as kvm
from pytest_kvm.errors import SwitchFailed
from pytest_kvm.options import settings_from
from pytest_kvm.provision.reset_coordinator import ResetCoordinator
from pytest_kvm.provision.run import Run


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
