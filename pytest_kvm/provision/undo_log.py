"""Who changed a guest, in which order, and which savepoint undoes it.

Each owner (a test, or a fixture of a wider scope) gets an entry when it first
uses the guest. The entry holds the point that the guest stood at before. When
an owner has ended and somebody else is about to use the guest, the guest is
restored to that point; a guest that nobody uses again is not restored.
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
"""A state that a guest can be restored to; a :class:`State` makes them, and they are compared by identity."""


class State(Protocol):
    """One guest's state on the hypervisor: memory and all writable disks together.

    Every method blocks until it is done; a guest that still boots is waited for.
    None of them uses the guest's verbs, which would use the undo log again.
    """

    @property
    def base(self) -> Point:
        """The state in which the guest became ready; costs nothing, even before it is."""
        ...

    def take(self) -> Point:
        """Take a savepoint.

        Raises:
            SnapshotFailed: Not in this state; the message names what is in the way.
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
        """Say whether a point can still be restored; ``base`` always can, others go with their guest."""
        ...

    def drop(self, point: Point) -> None:
        """Forget a point that was taken; never called for ``base``."""
        ...


class Owner:
    """Whoever changes guests: a test with its own fixtures, or one wider-scoped fixture.

    Args:
        name: How messages call it.
        reset: What a test says about its changes; None leaves it to the guest's spec.
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
    """One guest's entries, the oldest first.

    Args:
        guest: The guest's name.
        state: Takes and restores savepoints.
        reset: What the spec says about changes, where an owner says nothing.
        tell: Is told of savepoints and resets.
    """

    def __init__(self, guest: str, state: State, *, reset: Reset, tell: Listener) -> None:
        self._guest = guest
        self._state = state
        self._reset: Reset = reset
        self._tell = tell
        self._entries: list[_Entry] = []
        self._here: Point | None = state.base
        """The point that the guest stands at; None once somebody has used it since."""
        self._taken: list[Point] = []
        self._lock = threading.Lock()

    def use(self, owner: Owner) -> None:
        """Undo the changes of those who have ended, and note that ``owner`` changes the guest now.

        Raises:
            SnapshotFailed: Changes of others cannot be undone or kept apart.
        """
        with self._lock:
            self._undo_above(owner)
            self._push_entry(owner)
            self._here = None

    def settle(self, owner: Owner) -> None:
        """Do the slow part of :meth:`use` in advance, for an owner that will most likely use the guest.

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
        """Say whether there is anything of an owner's to undo."""
        with self._lock:
            return any(entry.owner is owner for entry in self._entries)

    def losers(self, owner: Owner) -> list[Owner]:
        """Return who has not ended and loses its changes when ``owner``'s are undone, first one first.

        That is whoever changed the guest afterwards; all others too, if what
        was there before is lost, as it is when the owner switched the guest off.
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
        """Undo the entries newer than the owner's own, from the oldest whose owner has ended."""
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

        Done when the next is taken and not at once: the drop would cost a test
        time, and one point too many costs little.
        """
        reachable = {id(entry.before) for entry in self._entries}
        for point in [each for each in self._taken if id(each) not in reachable]:
            self._state.drop(point)
            self._taken.remove(point)

    def _note(self, kind: Kind, *, since: float, why: str, tier: Tier | None = None) -> None:
        seconds = time.monotonic() - since
        self._tell(Event(guest=self._guest, kind=kind, tier=tier, seconds=seconds, why=why))
