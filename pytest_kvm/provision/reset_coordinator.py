"""Knows which test or fixture is at work, and tells the undo log of each guest that it uses."""

from __future__ import annotations

import threading
from collections.abc import Generator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from pytest_kvm.provision.events import Listener, ignore
from pytest_kvm.provision.undo_log import Owner, State, UndoLog

if TYPE_CHECKING:
    from pytest_kvm.handles.guest import Guest
    from pytest_kvm.spec.guest import Reset


class ResetCoordinator:
    """Passes each use of a guest to the guest's undo log, with the owner that is at work.

    Owners are a stack: a fixture is set up on behalf of a test, and the test goes
    on when the fixture is done. All threads share the stack: what a thread of a
    test does counts as done by the test.

    Args:
        tell: Gets an event for each savepoint and each reset.
    """

    def __init__(self, *, tell: Listener = ignore) -> None:
        self._tell = tell
        self._lock = threading.Lock()
        self._undo_logs: dict[Guest, UndoLog] = {}
        self._at_work: list[Owner] = []

    # ------------------------------------------------------------ guests

    def watch(self, guest: Guest, state: State, *, reset: Reset) -> None:
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

        Raises:
            SnapshotFailed: As in :meth:`UndoLog.use`.
        """
        undo_log = self._undo_logs.get(guest)
        if undo_log is None:
            return
        owner = self.owner
        if owner is None:
            undo_log.touch()
        else:
            undo_log.use(owner)

    def settle(self, guest: Guest) -> None:
        """Do the slow part of :meth:`before_use` in advance.

        Raises:
            SnapshotFailed: As in :meth:`before_use`.
        """
        undo_log, owner = self._undo_logs.get(guest), self.owner
        if undo_log is not None and owner is not None:
            undo_log.settle(owner)

    # ------------------------------------------------------------ owners

    @property
    def owner(self) -> Owner | None:
        """The owner that is at work; None between tests."""
        return self._at_work[-1] if self._at_work else None

    def enter(self, owner: Owner) -> None:
        """Put an owner on top of the stack."""
        self._at_work.append(owner)

    def leave(self, owner: Owner) -> None:
        """Take an owner and all owners above it off the stack."""
        if owner in self._at_work:
            del self._at_work[self._at_work.index(owner) :]

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
