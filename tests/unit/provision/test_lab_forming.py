"""What the function of a lab template must not leave behind."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from pytest_kvm.errors import SpecError
from pytest_kvm.hypervisor.protocol import DomainState
from pytest_kvm.provision.lab_forming import check_left


def machine(*, alive=True, state=DomainState.RUNNING, processes=(), ports=()):
    """Return a machine in some state."""
    made: Any = SimpleNamespace(
        name="left",
        domain=SimpleNamespace(alive=lambda: alive, state=lambda: state, end_reason=lambda: "destroyed"),
        shell=SimpleNamespace(processes=list(processes)),
        open_resources=SimpleNamespace(all=lambda: list(ports)),
    )
    return made


def test_a_guest_that_runs_by_itself_is_as_it_should_be():
    check_left("pair", machine())


@pytest.mark.parametrize(
    ("left", "says"),
    [
        (machine(alive=False), r"the lab template pair has left left off \(destroyed\)"),
        (machine(state=DomainState.PAUSED), "the lab template pair has left left paused"),
        (
            machine(processes=["<Process sleep>"]),
            "in left that a later run would not have: .*<Process sleep>",
        ),
        (machine(ports=["<Forward 80>"]), "in left that a later run would not have: .*<Forward 80>"),
    ],
    ids=["off", "paused", "process", "port"],
)
def test_what_a_later_run_would_not_have_is_an_error(left, says):
    with pytest.raises(SpecError, match=says):
        check_left("pair", left)
