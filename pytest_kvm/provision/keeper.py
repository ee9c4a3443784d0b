"""Keeps what tests and fixtures do to guests apart: knows who is at work, tells each guest's ledger."""

from __future__ import annotations

import threading
from collections.abc import Generator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from pytest_kvm.provision.events import Listener, ignore
from pytest_kvm.provision.ledger import Ledger, Owner, State

if TYPE_CHECKING:
    from pytest_kvm.handles.guest import Guest
    from pytest_kvm.spec.guest import Reset


class Keeper:
    """One process's ledgers, and the stack of those at work.

    Whoever came last is the one whose changes a use of a guest begins: a
    fixture that is set up on behalf of a test, until it is done, then the test.
    There is one stack for all threads: what a test's thread does, the test does.

    Args:
        tell: Is told of savepoints and resets.
    """

    def __init__(self, *, tell: Listener = ignore) -> None:
        self._tell = tell
        self._lock = threading.Lock()
        self._ledgers: dict[Guest, Ledger] = {}
        self._at_work: list[Owner] = []

    # ------------------------------------------------------------ guests

    def watch(self, guest: Guest, state: State, *, reset: Reset) -> None:
        """Keep changes of a guest apart from now on.

        Args:
            guest: The guest; it may still boot.
            state: Takes and restores its savepoints.
            reset: What its spec says.
        """
        with self._lock:
            self._ledgers[guest] = Ledger(guest.name, state, reset=reset, tell=self._tell)

    def forget(self, guest: Guest) -> None:
        """Stop doing so: the guest is about to be removed."""
        with self._lock:
            self._ledgers.pop(guest, None)

    def before_use(self, guest: Guest) -> None:
        """Make the guest ready for whoever is at work; called before each verb.

        Raises:
            SnapshotFailed: Changes of others cannot be undone or kept apart.
        """
        ledger = self._ledgers.get(guest)
        if ledger is None:
            return
        owner = self.owner
        if owner is None:
            ledger.touch()
        else:
            ledger.use(owner)

    def settle(self, guest: Guest) -> None:
        """Do the slow part of that in advance.

        Raises:
            SnapshotFailed: As in :meth:`before_use`.
        """
        ledger, owner = self._ledgers.get(guest), self.owner
        if ledger is not None and owner is not None:
            ledger.settle(owner)

    # ------------------------------------------------------------ owners

    @property
    def owner(self) -> Owner | None:
        """Whoever is at work now; None between tests."""
        return self._at_work[-1] if self._at_work else None

    def enter(self, owner: Owner) -> None:
        """Let an owner be at work, on behalf of whoever is."""
        self._at_work.append(owner)

    def leave(self, owner: Owner) -> None:
        """Let it be at work no longer, nor anybody on its behalf."""
        if owner in self._at_work:
            del self._at_work[self._at_work.index(owner) :]

    @contextmanager
    def at_work(self, owner: Owner) -> Generator[None]:
        """Let an owner be at work during the block."""
        self.enter(owner)
        try:
            yield
        finally:
            self.leave(owner)

    def has_changes_of(self, owner: Owner) -> bool:
        """Say whether there is anything of an owner's to undo."""
        with self._lock:
            return any(ledger.has_changes_of(owner) for ledger in self._ledgers.values())

    def losers(self, owner: Owner) -> list[Owner]:
        """Return who would lose its changes by an undoing of ``owner``'s, the last one first."""
        with self._lock:
            ledgers = list(self._ledgers.values())
        losing = [each for ledger in ledgers for each in ledger.losers(owner)]
        return list(dict.fromkeys(reversed(losing)))
