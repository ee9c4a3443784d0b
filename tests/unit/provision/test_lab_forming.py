"""What the function of a lab template must not leave behind."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from pytest_kvm.errors import SpecError
from pytest_kvm.hypervisor.protocol import DomainState
from pytest_kvm.provision.lab_forming import check_left


def machine(*, alive=True, state=DomainState.RUNNING, at_work=()):
    """Return a machine in some state."""
    made: Any = SimpleNamespace(
        name="left",
        domain=SimpleNamespace(alive=lambda: alive, state=lambda: state, end_reason=lambda: "destroyed"),
        at_work=list(at_work),
    )
    return made


def test_a_guest_that_runs_by_itself_is_as_it_should_be():
    check_left("pair", machine())


@pytest.mark.parametrize(
    ("left", "says"),
    [
        (machine(alive=False), r"the lab template pair has left left off \(destroyed\)"),
        (machine(state=DomainState.PAUSED), "the lab template pair has left left paused"),
        (machine(at_work=["<Process>"]), "in left that a later run would not have: .*<Process>"),
    ],
    ids=["off", "paused", "at work"],
)
def test_what_a_later_run_would_not_have_is_an_error(left, says):
    with pytest.raises(SpecError, match=says):
        check_left("pair", left)
