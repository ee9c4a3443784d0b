"""The switch's process, as the run sees its start and its end."""

from __future__ import annotations

import os
import signal

import pytest

from pytest_kvm.errors import SwitchFailed
from pytest_kvm.switch import switch_process
from pytest_kvm.switch.client import Switch


def test_a_switch_that_is_killed_says_so_and_can_be_closed():
    switch = Switch()
    switch.add_segment("lan")
    os.kill(switch.pid, signal.SIGKILL)
    for _ in range(2):
        with pytest.raises(SwitchFailed, match="has ended") as failed:
            switch.add_segment("wan")
        assert failed.value.details == f"its process was {switch.pid}, exit status -9"
    switch.close()
    switch.close()


def test_an_order_after_the_end_of_the_run():
    switch = Switch()
    switch.close()
    with pytest.raises(SwitchFailed, match="the switch of this run has ended") as failed:
        switch.add_segment("lan")
    assert failed.value.details == ""


def test_a_switch_that_cannot_be_started(monkeypatch, tmp_path):
    monkeypatch.setattr(switch_process.sys, "executable", str(tmp_path / "python"))
    with pytest.raises(SwitchFailed, match="the switch of this run cannot be started: .*No such file"):
        Switch()
