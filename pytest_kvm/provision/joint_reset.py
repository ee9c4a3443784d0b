"""Makes guests ready for an owner's changes: undoes those of owners that have ended, saves what is to stay.

Guests on a segment know of each other. So all of them are saved at one moment:
else one could be put back to before it sent what another, in its own savepoint,
has received. Guests that savepoints are loaded into go on together.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

from pytest_kvm.at_once import do_at_once, raise_first
from pytest_kvm.errors import KvmError, SnapshotFailed, SwitchFailed
from pytest_kvm.provision.restorable_state import Traffic
from pytest_kvm.provision.undo_log import Owner, UndoLog

_log = logging.getLogger("pytest_kvm.provision")


class Use(NamedTuple):
    """What an owner is about to do to a guest."""

    is_direct: bool
    """Whether the owner uses the guest itself, and not only a neighbour that may change it."""
    is_change: bool
    """Whether the guest counts as changed even if no frame comes to it."""


DIRECT = Use(is_direct=True, is_change=True)
PLANNED = Use(is_direct=True, is_change=False)
"""The owner holds the guest, and will probably use it."""
BY_NEIGHBOUR = Use(is_direct=False, is_change=False)
BY_FAULT = Use(is_direct=False, is_change=True)
"""The owner begins a fault of a segment."""


def is_due(uses: Mapping[UndoLog, Use], owner: Owner) -> bool:
    """Say whether :func:`make_ready` would have to undo or save anything, or to make an entry."""
    return any(
        each.is_due(owner) for each, use in uses.items() if use.is_direct or not each.has_given_up(owner)
    )


def note_changes(uses: Mapping[UndoLog, Use], owner: Owner) -> None:
    """Note what the owner is about to do to guests that are ready for it."""
    for each, use in uses.items():
        if use.is_change or (use.is_direct and each.reset_for(owner) == "always"):
            each.note_change(owner)


def make_ready(uses: Mapping[UndoLog, Use], owner: Owner) -> None:
    """Undo the changes of owners that have ended, and give an owner an entry on each guest.

    A guest that cannot be saved now keeps what its neighbours do to it: a
    fixture's process, for instance, is at work in it for all tests. One that
    cannot be put back stays cut off. The owner's next steps are no reason to try
    again, and only a use of the guest itself is an error.

    Args:
        uses: Guests that can change each other, and what the owner does to each.
        owner: The owner at work.

    Raises:
        KvmError: Of a guest that the owner uses itself, changes of others cannot be
            undone, or not be kept apart by a savepoint; the errors of all but one guest are logged.
        SwitchFailed: The switch has ended.
    """
    step = _Step(uses, owner)
    step.undo()
    step.save()
    step.make_entries()


class _Step:
    """The work of :func:`make_ready`.

    Args:
        uses: As there.
        owner: As there.
    """

    def __init__(self, uses: Mapping[UndoLog, Use], owner: Owner) -> None:
        self._uses = uses
        self._owner = owner
        self._open = [each for each, use in uses.items() if use.is_direct or not each.has_given_up(owner)]
        """The undo logs of guests that nothing has failed for."""
        self._traffic: dict[UndoLog, Traffic] = {}
        """The frames that had passed at the point where each guest stands."""
        self._failures: list[KvmError] = []

    def undo(self) -> None:
        """Restore guests to before the changes of owners that have ended.

        A guest that the owner does not use itself is left as it is while others that have not
        ended have changed it since: a fixture that ends with its test, for instance, whose turn is next.
        """
        asked = [each for each in self._open if each.has_ended_above(self._owner)]
        traffic = {each: each.state.traffic() for each in asked}
        for each in asked:
            each.settle_entries(traffic[each])
        due = {
            each: index
            for each in asked
            if (index := each.index_to_undo(self._owner)) is not None
            and (self._uses[each].is_direct or each.has_ended_from(index))
        }
        if not due:
            return
        states = [(each.state, each.before(index)) for each, index in due.items()]
        outcomes = dict(zip(due, states[0][0].restore_all(states), strict=True))
        for each, outcome in outcomes.items():
            if not isinstance(outcome, Exception):
                each.note_reset(due[each], outcome, traffic=traffic[each])
                self._traffic[each] = traffic[each]
        for each, outcome in outcomes.items():
            if isinstance(outcome, Exception):
                if not self._uses[each].is_direct:
                    _log.warning("%s stays cut off from %s: %s", each.guest, self._owner.name, outcome)
                self._fail(each, outcome)

    def save(self) -> None:
        """Take savepoints of guests that have changed since their last points, all at one moment.

        A guest that has not changed, but has told others something since, is
        saved with them: what they know of it has to be in its savepoint, too. One
        that tells them something for the first time just before they stand still
        is found afterwards, and all are saved once more.
        """
        pending = [each for each in self._open if each.needs_entry(self._owner)]
        for each in pending:
            if each not in self._traffic:
                self._traffic[each] = each.state.traffic()
                each.settle_entries(self._traffic[each])
        due = [each for each in pending if each.must_save(self._traffic[each])]
        while due:
            due += self._tellers(pending, but=due)
            self._take(due)
            if not self._tellers(pending, but=due):
                break

    def make_entries(self) -> None:
        """Give the owner its entries, and raise what has failed."""
        for each in self._open:
            if each.needs_entry(self._owner):
                each.push_entry(self._owner, traffic=self._traffic[each])
        note_changes({each: self._uses[each] for each in self._open}, self._owner)
        for each, use in self._uses.items():
            if each not in self._open and use.is_change and not use.is_direct:
                each.touch()
        raise_first(self._failures)

    def _tellers(self, pending: Sequence[UndoLog], *, but: Collection[UndoLog]) -> list[UndoLog]:
        """Return the guests of which others know more than is in the guests' last points."""
        traffic = {each: each.state.traffic() for each in pending if each not in but and each in self._open}
        tellers = [each for each in traffic if each.has_told(traffic[each])]
        self._traffic |= {each: traffic[each] for each in tellers}
        return tellers

    def _take(self, due: Sequence[UndoLog]) -> None:
        """Take savepoints at one moment, of those that nothing has failed for."""
        due = [each for each in due if each in self._open]
        if not due:
            return
        begun = time.monotonic()
        do_at_once([each.drop_unreachable for each in due])
        self._traffic |= {each: each.state.traffic() for each in due}
        outcomes = dict(zip(due, due[0].state.take_all([each.state for each in due]), strict=True))
        seconds = time.monotonic() - begun
        for each, outcome in outcomes.items():
            if not isinstance(outcome, Exception):
                each.note_savepoint(outcome, self._owner, traffic=self._traffic[each], seconds=seconds)
        for each, outcome in outcomes.items():
            if isinstance(outcome, SnapshotFailed):
                self._go_without(each, each.refusal(outcome, self._owner))
            elif isinstance(outcome, Exception):
                self._fail(each, outcome)

    def _go_without(self, undo_log: UndoLog, refusal: SnapshotFailed) -> None:
        """Do without a savepoint that could not be taken, if there is an older one; else it is a failure."""
        is_direct = self._uses[undo_log].is_direct
        if undo_log.has_point and is_direct:
            _log.warning("%s; what came since the last one is lost with the next reset", refusal)
        elif undo_log.has_point and not undo_log.has_told(undo_log.state.traffic()):
            _log.info("%s", refusal)
        else:
            if not is_direct:
                _log.info("%s keeps what its neighbours do to it: %s", undo_log.guest, refusal)
            self._fail(undo_log, refusal)

    def _fail(self, undo_log: UndoLog, failure: Exception) -> None:
        """Do no more to a guest; raise the failure in the end if the owner uses the guest itself."""
        if isinstance(failure, SwitchFailed) or not isinstance(failure, KvmError):
            raise failure
        self._open.remove(undo_log)
        if self._uses[undo_log].is_direct:
            self._failures.append(failure)
        else:
            undo_log.give_up(self._owner)
