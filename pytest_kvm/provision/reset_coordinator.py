"""Passes each use of a guest to the undo logs of the guests that it may change, with the owner at work."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Collection, Generator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING

from pytest_kvm.at_once import do_at_once
from pytest_kvm.errors import GuestGone, SwitchFailed
from pytest_kvm.provision.events import EventListener, ignore
from pytest_kvm.provision.restorable_state import RestorableState
from pytest_kvm.provision.undo_log import Owner, UndoLog

if TYPE_CHECKING:
    from pytest_kvm.handles.guest import Guest
    from pytest_kvm.handles.segment import Segment
    from pytest_kvm.spec.guest import Reset

_log = logging.getLogger("pytest_kvm.provision")


class ResetCoordinator:
    """Passes each use of a guest to the guest's undo log, with the owner that is at work.

    Owners are a stack: a fixture is set up on behalf of a test, and the test goes
    on when the fixture is done. All threads share the stack: what a thread of a
    test does counts as done by the test.

    Args:
        tell: Gets an event for each savepoint and each reset.
    """

    def __init__(self, *, tell: EventListener = ignore) -> None:
        self._tell = tell
        self._lock = threading.Lock()
        self._undo_logs: dict[Guest, UndoLog] = {}
        self._at_work: list[Owner] = []

    # ------------------------------------------------------------ guests

    def watch(self, guest: Guest, state: RestorableState, *, reset: Reset) -> None:
        """Keep an undo log for a guest from now on.

        Args:
            guest: The guest; it may still boot.
            state: Takes and restores its savepoints.
            reset: The ``reset`` of its spec.
        """
        with self._lock:
            self._undo_logs[guest] = UndoLog(guest.name, state, reset=reset, tell=self._tell)

    def forget(self, guest: Guest) -> None:
        """Drop a guest's undo log: the guest is about to be removed."""
        with self._lock:
            self._undo_logs.pop(guest, None)

    def before_use(self, guest: Guest) -> None:
        """Undo changes of owners that have ended; called before each verb of the guest.

        The guest can change its neighbours, so this is done for them as well.

        Raises:
            SnapshotFailed: As in :meth:`UndoLog.use`.
            SwitchFailed: The guest is on a segment, and the switch has ended.
        """
        undo_log, owner = self._undo_logs.get(guest), self.owner
        if owner is None:
            if undo_log is not None:
                undo_log.touch()
            return
        actions = {} if undo_log is None else {undo_log: partial(undo_log.use, owner)}
        actions |= {each: partial(each.expose, owner) for each in self._reached_from([guest]) - {undo_log}}
        self._undo_and_do(actions, owner)

    def before_fault(self, guests: Collection[Guest]) -> None:
        """Undo changes of owners that have ended; called before each fault of a segment.

        Frames that do not come change a guest as well as those that come. So all
        guests that frames from the segment can reach count as changed.

        Args:
            guests: The guests on the segment.

        Raises:
            SwitchFailed: The switch has ended.
        """
        changed, owner = self._reached_from(guests), self.owner
        if owner is None:
            for each in changed:
                each.touch()
        else:
            self._undo_and_do({each: partial(each.expose, owner, is_change=True) for each in changed}, owner)

    def settle(self, guests: Collection[Guest]) -> None:
        """Do the slow part of :meth:`before_use` in advance, for all guests at the same time.

        Raises:
            SnapshotFailed: As in :meth:`before_use`; the errors of all but one guest are logged.
            SwitchFailed: As in :meth:`before_use`.
        """
        owner = self.owner
        if owner is None:
            return
        held = (self._undo_logs.get(guest) for guest in guests)
        undo_logs = list(dict.fromkeys(each for each in held if each is not None))
        neighbours = self._reached_from(guests).difference(undo_logs)
        actions = [partial(each.settle, owner) for each in undo_logs]
        actions += [partial(each.undo_ended, owner) for each in neighbours]
        self._do_at_once(actions)

    def _undo_and_do(self, actions: Mapping[UndoLog, Callable[[], None]], owner: Owner) -> None:
        """Do what may undo changes: at the same time, if those of several guests are undone."""
        if sum(not undo_log.is_settled(owner) for undo_log in actions) > 1:
            self._do_at_once(list(actions.values()))
        else:
            for action in actions.values():
                action()

    def _do_at_once(self, actions: Sequence[Callable[[], None]]) -> None:
        """Do all at the same time; after Ctrl-C no guest is reset any more.

        A reset that is under way holds its guest's undo log, and ends when the
        guest is removed. So nobody may ask that undo log before.
        """
        try:
            do_at_once(actions)
        except KeyboardInterrupt:
            with self._lock:
                self._undo_logs.clear()
            raise

    def _reached_from(self, guests: Collection[Guest]) -> set[UndoLog]:
        """Return the undo logs of guests and of all that their frames can reach, also by way of others."""
        met = list(dict.fromkeys(guests))
        segments: list[Segment] = []
        for guest in met:  # grows
            for segment in {nic.segment for nic in guest.nics}.difference(segments):
                segments.append(segment)
                met += [other for other in segment.guests if other not in met]
        watched = ((guest, self._undo_logs.get(guest)) for guest in met)
        return {each for guest, each in watched if each is not None and guest.state != "failed"}

    # ------------------------------------------------------------ owners

    @property
    def owner(self) -> Owner | None:
        """The owner that is at work; None between tests."""
        return self._at_work[-1] if self._at_work else None

    @property
    def outermost(self) -> Owner | None:
        """The owner in whose time all others at work were put to work: during a test, the test."""
        return self._at_work[0] if self._at_work else None

    def enter(self, owner: Owner) -> None:
        """Put an owner on top of the stack."""
        self._at_work.append(owner)

    def leave(self, owner: Owner) -> None:
        """Take an owner and all owners above it off the stack."""
        if owner in self._at_work:
            del self._at_work[self._at_work.index(owner) :]

    def cut_off(self, owner: Owner) -> None:
        """Cut guests that have changes of an owner, which has ended, off their segments until they are reset.

        So no frame of one test reaches the next. Guests are looked at again until
        no other is found: what was not cut off yet may have changed a neighbour.
        """
        with self._lock:
            undo_logs = list(self._undo_logs.values())
        try:
            while sum(undo_log.cut_off_if_changed(owner) for undo_log in undo_logs):
                pass
            for undo_log in undo_logs:
                undo_log.drop_unreached(owner)
        except (SwitchFailed, GuestGone) as failure:  # the next use of a guest on a segment raises it
            _log.info("no guest is cut off after %s: %s", owner.name, failure)

    @contextmanager
    def at_work(self, owner: Owner) -> Generator[None]:
        """Have an owner on top of the stack during a block."""
        self.enter(owner)
        try:
            yield
        finally:
            self.leave(owner)

    def has_changes_of(self, owner: Owner) -> bool:
        """Say whether any guest has changes of an owner that can be undone."""
        with self._lock:
            return any(undo_log.has_changes_of(owner) for undo_log in self._undo_logs.values())

    def losers(self, owner: Owner) -> list[Owner]:
        """Return the owners that lose their changes when ``owner``'s are undone, the newest first."""
        with self._lock:
            undo_logs = list(self._undo_logs.values())
        losing = [each for undo_log in undo_logs for each in undo_log.losers(owner)]
        return list(dict.fromkeys(reversed(losing)))
