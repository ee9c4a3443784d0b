"""Passes each use of a guest to the undo logs of the guests that it may change, with the owner at work."""

from __future__ import annotations

import logging
import threading
from collections.abc import Collection, Generator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING

from pytest_kvm.at_once import do_at_once, in_thread, wait_for
from pytest_kvm.errors import GuestGone, SwitchFailed
from pytest_kvm.provision.events import EventListener, ignore
from pytest_kvm.provision.joint_reset import (
    BY_FAULT,
    BY_NEIGHBOUR,
    DIRECT,
    PLANNED,
    Use,
    is_due,
    make_ready,
    note_changes,
)
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
        self._undo_logs: dict[Guest, UndoLog] = {}
        self._lock = threading.Lock()
        """Held for a moment, to change the mapping."""
        self._at_undo_logs = threading.Lock()
        """Held by who asks or changes undo logs, also while guests are saved and restored."""
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
            KvmError: As in :func:`~pytest_kvm.provision.joint_reset.make_ready`.
        """
        owner, own = self.owner, self._undo_logs.get(guest)
        if owner is not None:
            self._make_ready([self._uses(_group_of([guest]), {guest: DIRECT}, BY_NEIGHBOUR)], owner)
        elif own is not None:
            with self._at_undo_logs:
                own.touch()

    def before_fault(self, guests: Collection[Guest]) -> None:
        """Undo changes of owners that have ended; called before each fault of a segment.

        Frames that do not come change a guest as well as those that come. So all
        guests that frames from the segment can reach count as changed.

        Args:
            guests: The guests on the segment.

        Raises:
            SwitchFailed: The switch has ended.
        """
        owner, uses = self.owner, self._uses(_group_of(guests), {}, BY_FAULT)
        if owner is not None:
            self._make_ready([uses], owner)
        else:
            with self._at_undo_logs:
                for each in uses:
                    each.touch()

    def settle(self, guests: Collection[Guest]) -> None:
        """Do the slow part of :meth:`before_use` in advance, for all guests at the same time.

        Raises:
            KvmError: As in :meth:`before_use`.
        """
        owner = self.owner
        if owner is None:
            return
        groups: list[list[Guest]] = []
        for guest in guests:
            if not any(guest in group for group in groups):
                groups.append(_group_of([guest]))
        held = dict.fromkeys(guests, PLANNED)
        self._make_ready([self._uses(group, held, BY_NEIGHBOUR) for group in groups], owner)

    def _make_ready(self, groups: Sequence[Mapping[UndoLog, Use]], owner: Owner) -> None:
        """Prepare groups of guests that can change each other for the owner at work.

        What takes time is done in threads, which are daemons: whoever is interrupted
        while they are at work leaves them behind, and they let nobody else at the
        undo logs until they are done. After Ctrl-C, no guest is reset any more.
        """
        undo_logs = self._at_undo_logs
        with undo_logs:
            if not any(is_due(uses, owner) for uses in groups):
                for uses in groups:
                    note_changes(uses, owner)
                return

        def work() -> None:
            with undo_logs:
                do_at_once([partial(make_ready, uses, owner) for uses in groups])

        try:
            done = in_thread(work)
            wait_for([done])
            done.result()
        except KeyboardInterrupt:
            with self._lock:
                self._undo_logs.clear()
                self._at_undo_logs = threading.Lock()
            raise

    def _uses(self, group: Collection[Guest], own: Mapping[Guest, Use], rest: Use) -> dict[UndoLog, Use]:
        """Return the undo logs of a group of guests, with what is about to be done to each of them.

        Args:
            group: The guests.
            own: The use of some of them.
            rest: The use of the others, of which those that have failed do not take part.
        """
        uses: dict[UndoLog, Use] = {}
        for guest in group:
            undo_log = self._undo_logs.get(guest)
            if undo_log is not None and (guest in own or guest.state != "failed"):
                uses[undo_log] = own.get(guest, rest)
        return uses

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
        with self._all_undo_logs() as undo_logs:
            try:
                while sum(undo_log.cut_off_if_changed(owner) for undo_log in undo_logs):
                    pass
                for undo_log in undo_logs:
                    undo_log.settle_entries_of(owner)
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
        with self._all_undo_logs() as undo_logs:
            return any(undo_log.has_changes_of(owner) for undo_log in undo_logs)

    def why_not_new(self, guest: Guest) -> str:
        """Return why a guest had changed before the owner at work used it; "" if it had not."""
        owner = self.owner
        with self._all_undo_logs():
            undo_log = self._undo_logs.get(guest)
            if owner is None or undo_log is None or undo_log.reset_for(owner) == "never":
                return f"{guest.name} is not reset"
            others = [each.name for each in undo_log.changers() if each is not owner]
            if not others and undo_log.began_at_base(owner):
                return ""
        return f"{guest.name} was changed by {others[0] if others else 'use or by frames'} before"

    def losers(self, owner: Owner) -> list[Owner]:
        """Return the owners that lose their changes when ``owner``'s are undone, the newest first."""
        with self._all_undo_logs() as undo_logs:
            losing = [each for undo_log in undo_logs for each in undo_log.losers(owner)]
        return list(dict.fromkeys(reversed(losing)))

    @contextmanager
    def _all_undo_logs(self) -> Generator[list[UndoLog]]:
        with self._at_undo_logs:
            with self._lock:
                undo_logs = list(self._undo_logs.values())
            yield undo_logs


def _group_of(guests: Collection[Guest]) -> list[Guest]:
    """Return guests and all that their frames can reach, also by way of others."""
    met = list(dict.fromkeys(guests))
    segments: list[Segment] = []
    for guest in met:  # grows
        for segment in {nic.segment for nic in guest.nics}.difference(segments):
            segments.append(segment)
            met += [other for other in segment.guests if other not in met]
    return met
