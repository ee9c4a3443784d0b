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
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from pytest_kvm.errors import SnapshotFailed
from pytest_kvm.provision.events import Event, Kind, Listener, Tier

if TYPE_CHECKING:
    from pytest_kvm.spec.guest import Reset

_log = logging.getLogger("pytest_kvm.provision")

Point = object
"""A state that a guest can be restored to. :class:`State` makes points; they are compared by identity."""


class State(Protocol):
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

    def __init__(self, guest: str, state: State, *, reset: Reset, tell: Listener) -> None:
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
