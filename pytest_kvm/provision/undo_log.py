"""Who changed a guest, in which order, and which savepoint undoes it.

Each owner (a test, or a fixture of a wider scope) gets an entry when it first
uses the guest. The entry holds the point that the guest stood at before. When
an owner has ended and another owner is about to use the guest, the guest is
restored to that point. A guest that is not used again is not restored.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from pytest_kvm.errors import SnapshotFailed
from pytest_kvm.provision.events import Event, EventListener, Kind, Tier, ignore

if TYPE_CHECKING:
    from pytest_kvm.handles.guest import Guest
    from pytest_kvm.spec.guest import Reset

_log = logging.getLogger("pytest_kvm.provision")

Point = object
"""A state that a guest can be restored to, made by :class:`RestorableState`; compared by identity."""


class RestorableState(Protocol):
    """One guest's state on the hypervisor: memory and all writable disks together.

    Every method blocks until it is done, and waits for a guest that still boots.
    No method may use the guest's verbs, because they use the undo log.
    """

    @property
    def base(self) -> Point:
        """The state in which the guest became ready; asking for it waits for nothing."""
        ...

    def take(self) -> Point:
        """Take a savepoint.

        Raises:
            SnapshotFailed: No savepoint can be taken in this state; the message says why.
        """
        ...

    def restore(self, point: Point) -> Tier:
        """Restore a point, as often as wanted, and return how it was done.

        Points taken after this one cannot be restored any more.

        Raises:
            SnapshotFailed: The point cannot be reached any more.
        """
        ...

    def reaches(self, point: Point) -> bool:
        """Say whether a point can still be restored: ``base`` always can, others end with their machine."""
        ...

    def drop(self, point: Point) -> None:
        """Forget a point that was taken; never called for ``base``."""
        ...


class Owner:
    """A test with its function-scoped fixtures, or one wider-scoped fixture: its changes are undone together.

    Args:
        name: Its name in messages.
        reset: The test's own choice of ``reset``; None: the guest's spec decides.
    """

    def __init__(self, name: str, *, reset: Reset | None = None) -> None:
        self.name = name
        self.reset: Reset | None = reset
        self.ended = False
        """Whether its changes are to be undone."""

    def __repr__(self) -> str:
        return f"<Owner {self.name}{', ended' if self.ended else ''}>"


@dataclass(frozen=True, kw_only=True)
class _Entry:
    """One owner's changes, and the point before them."""

    owner: Owner
    before: Point


class UndoLog:
    """The entries of one guest, the oldest first, and the steps that undo them.

    Args:
        guest: The guest's name.
        state: Takes and restores savepoints.
        reset: The spec's ``reset``, for owners that have none of their own.
        tell: Gets an event for each savepoint and each reset.
    """

    def __init__(self, guest: str, state: RestorableState, *, reset: Reset, tell: EventListener) -> None:
        self._guest = guest
        self._state = state
        self._reset: Reset = reset
        self._tell = tell
        self._entries: list[_Entry] = []
        self._here: Point | None = state.base
        """The point that the guest stands at; None if the guest was used since."""
        self._taken: list[Point] = []
        self._lock = threading.Lock()

    def use(self, owner: Owner) -> None:
        """Undo the changes of owners that have ended, and note that ``owner`` changes the guest now.

        Raises:
            SnapshotFailed: Changes of other owners cannot be undone, or not be kept apart by a savepoint.
        """
        with self._lock:
            self._undo_above(owner)
            self._push_entry(owner)
            self._here = None

    def settle(self, owner: Owner) -> None:
        """Do the slow part of :meth:`use` in advance, for an owner that will probably use the guest.

        Raises:
            SnapshotFailed: As in :meth:`use`.
        """
        with self._lock:
            self._undo_above(owner)
            if self._reset_for(owner) == "always":
                self._push_entry(owner)
                self._here = None
            elif self._needs_entry(owner):
                self._here = self._point(owner)

    def touch(self) -> None:
        """Note a use without an owner; it is undone with the newest entry."""
        with self._lock:
            self._here = None

    def has_changes_of(self, owner: Owner) -> bool:
        """Say whether the guest has changes of an owner that can be undone."""
        with self._lock:
            return any(entry.owner is owner for entry in self._entries)

    def losers(self, owner: Owner) -> list[Owner]:
        """Return the owners that have not ended and lose their changes when ``owner``'s are undone.

        These are the owners that changed the guest after ``owner``. If the point
        before ``owner``'s changes can no longer be restored (``owner`` switched
        the guest off, for instance), all other owners lose theirs. The oldest
        comes first.
        """
        with self._lock:
            owners = [entry.owner for entry in self._entries]
            if owner not in owners:
                return []
            own = owners.index(owner)
            losing = owners[own:] if self._state.reaches(self._entries[own].before) else owners
            return [each for each in dict.fromkeys(losing) if not each.ended and each is not owner]

    # ------------------------------------------------------------ with the lock held

    def _reset_for(self, owner: Owner) -> Reset:
        return owner.reset or self._reset

    def _is_on_top(self, owner: Owner) -> bool:
        return bool(self._entries) and self._entries[-1].owner is owner

    def _needs_entry(self, owner: Owner) -> bool:
        """Say whether the owner's next change needs a new entry."""
        return self._reset_for(owner) != "never" and not self._is_on_top(owner)

    def _push_entry(self, owner: Owner) -> None:
        if self._needs_entry(owner):
            self._entries.append(_Entry(owner=owner, before=self._point(owner)))

    def _point(self, owner: Owner) -> Point:
        """Return the point that the guest stands at; take a savepoint if it has changed since the last."""
        return self._take(owner) if self._here is None else self._here

    def _undo_above(self, owner: Owner) -> None:
        """Of the entries newer than the owner's, undo the oldest whose owner has ended, and all after it."""
        owners = [entry.owner for entry in self._entries]
        own = len(owners) - owners[::-1].index(owner) if owner in owners else 0
        for index, each in enumerate(owners[own:], start=own):
            if each.ended:
                self._undo_down_to(index)
                return

    def _undo_down_to(self, index: int) -> None:
        undone = self._entries[index:]
        if lost := [entry.owner.name for entry in undone if not entry.owner.ended]:
            _log.warning("%s: what %s did is undone early", self._guest, " and ".join(lost))
        begun = time.monotonic()
        tier = self._state.restore(undone[0].before)
        self._here = undone[0].before
        del self._entries[index:]
        owners = dict.fromkeys(entry.owner.name for entry in undone)
        self._note("reset", since=begun, tier=tier, why="after " + ", ".join(owners))

    def _take(self, owner: Owner) -> Point:
        self._drop_unreachable()
        begun = time.monotonic()
        try:
            point = self._state.take()
        except SnapshotFailed as error:
            raise self._refusal(error, owner) from error
        self._taken.append(point)
        self._note("savepoint", since=begun, why=f"before {owner.name}")
        return point

    def _refusal(self, error: SnapshotFailed, owner: Owner) -> SnapshotFailed:
        changed = f"what {self._entries[-1].owner.name} did" if self._entries else "what was done before"
        return type(error)(
            f"{self._guest}: no savepoint between {changed} and {owner.name}: {error.brief}",
            details=error.details,
            resolution=f'{error.resolution or "remove what is in the way"}, or say reset="never"',
        )

    def _drop_unreachable(self) -> None:
        """Drop the points that no entry holds.

        Called before the next savepoint is taken, and not after each reset:
        dropping takes time from a test, and one savepoint more costs little.
        """
        reachable = {id(entry.before) for entry in self._entries}
        for point in [each for each in self._taken if id(each) not in reachable]:
            self._state.drop(point)
            self._taken.remove(point)

    def _note(self, kind: Kind, *, since: float, why: str, tier: Tier | None = None) -> None:
        seconds = time.monotonic() - since
        self._tell(Event(guest=self._guest, kind=kind, tier=tier, seconds=seconds, why=why))


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
