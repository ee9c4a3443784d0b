"""Steps that are done for several guests at the same time, where one of them may fail."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING

from pytest_kvm.at_once import outcomes_at_once, raise_first

if TYPE_CHECKING:
    from pytest_kvm.machine.machine import Machine

_log = logging.getLogger("pytest_kvm.savepoints")


class JointSteps:
    """Does steps for several guests at the same time, and leaves out those that a step has failed for.

    Args:
        machines: The guests.
    """

    def __init__(self, machines: Sequence[Machine]) -> None:
        self._machines = tuple(machines)
        self.left = list(machines)
        """The guests that nothing has failed for."""
        self._failures: dict[str, Exception] = {}

    def each(
        self,
        step: Callable[[Machine], object],
        *,
        of: Sequence[Machine] | None = None,
        despite_failures: bool = False,
    ) -> None:
        """Do a step.

        Args:
            step: Does it for one guest.
            of: The guests that need it; None: all.
            despite_failures: Whether it is done also for those that a step has failed for.
        """
        needy = self.left if of is None else of
        chosen = [each for each in needy if despite_failures or each in self.left]
        outcomes = outcomes_at_once([partial(step, each) for each in chosen])
        for machine, outcome in zip(chosen, outcomes, strict=True):
            if isinstance(outcome, Exception):
                self._fail(machine, outcome)

    def outcomes(self) -> list[Exception | None]:
        """Return for each guest its first failure, if there is one."""
        return [self._failures.get(machine.name) for machine in self._machines]

    def raise_failures(self) -> None:
        """Raise the first guest's failure, if there is one, and log the others."""
        raise_first([outcome for outcome in self.outcomes() if outcome is not None])

    def _fail(self, machine: Machine, failure: Exception) -> None:
        if machine in self.left:
            self.left.remove(machine)
            self._failures[machine.name] = failure
        else:
            _log.warning("%s: %s", machine.name, failure)
