"""Who changed a guest, in which order, and which savepoint undoes it.

Each owner (a test, or a fixture of a wider scope) gets an entry when it first
uses the guest. The entry holds the point that the guest stood at before. When
an owner has ended and another owner is about to use the guest, the guest is
restored to that point. A guest that is not used again is not restored.

Guests on a segment change each other. So an owner that uses one of them gets an
entry on the others, too; it goes again if no frame has come that can have changed
the guest.
"""

from __future__ import annotations

import logging
import threading
import time
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING
from weakref import WeakSet

from pytest_kvm.errors import KvmError, SnapshotFailed, SwitchFailed
from pytest_kvm.provision.events import Event, EventListener, Kind, Tier
from pytest_kvm.provision.restorable_state import Point, RestorableState

if TYPE_CHECKING:
    from pytest_kvm.spec.guest import Reset

_log = logging.getLogger("pytest_kvm.provision")


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
        self.on_end = ExitStack()
        """Undoes what it has done outside of guests."""

    def end(self) -> None:
        """Have its changes to guests undone before their next use, and undo now what it did outside of them.

        Raises:
            Exception: Whatever a step of ``on_end`` raises; the others are done.
        """
        self.ended = True
        self.on_end.close()

    def __repr__(self) -> str:
        return f"<Owner {self.name}{', ended' if self.ended else ''}>"


@dataclass(kw_only=True)
class _Entry:
    """One owner's changes, and the point before them."""

    owner: Owner
    before: Point
    is_used: bool
    """Whether the owner has used the guest; else neighbours may have changed it on the owner's behalf."""
    reached: int
    """How many frames had reached the guest before."""


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
        """The point that the guest stands at, unless frames have come since; None if it was used since."""
        self._reached_here: int | None = None
        """How many frames had reached the guest at that point; None while it becomes ready."""
        self._taken: list[Point] = []
        self._given_up: WeakSet[Owner] = WeakSet()
        """Owners that use neighbours, and whose changes by way of them cannot be kept apart."""
        self._is_detached = False
        self._lock = threading.Lock()

    def use(self, owner: Owner) -> None:
        """Undo the changes of owners that have ended, and note that ``owner`` changes the guest now.

        Raises:
            SnapshotFailed: Changes of other owners cannot be undone, or not be kept apart by a savepoint.
        """
        with self._lock:
            self._undo_above(owner)
            self._push_entry(owner, is_used=True)
            self._here = None

    def expose(self, owner: Owner, *, is_change: bool = False) -> None:
        """Note that ``owner`` is about to use a neighbour, which may change the guest.

        A guest that cannot be saved now keeps what its neighbours do to it:
        a fixture's process, for instance, is at work in it for all tests. One
        that cannot be put back stays cut off. The owner's next steps are no
        reason to try again, and only a use of the guest itself is an error.

        Args:
            owner: The owner at work.
            is_change: Whether the guest counts as changed even if no frame comes.

        Raises:
            SwitchFailed: The switch has ended.
        """
        with self._lock:
            self._note_here()
            if owner not in self._given_up and self._try_to_undo(owner):
                try:
                    self._push_entry(owner, is_used=is_change)
                except SwitchFailed:
                    raise
                except KvmError as failure:
                    self._given_up.add(owner)
                    _log.info("%s keeps what its neighbours do to it: %s", self._guest, failure)
            if is_change:
                self._here = None

    def is_settled(self, owner: Owner) -> bool:
        """Say whether there is nothing to undo before ``owner`` uses the guest."""
        with self._lock:
            return self._first_to_undo(owner) is None

    def undo_ended(self, owner: Owner) -> None:
        """Undo the changes of owners that have ended, for an owner that will probably use a neighbour.

        Raises:
            SwitchFailed: The switch has ended.
        """
        with self._lock:
            if owner not in self._given_up:
                self._try_to_undo(owner)

    def settle(self, owner: Owner) -> None:
        """Do the slow part of :meth:`use` in advance, for an owner that will probably use the guest.

        Raises:
            SnapshotFailed: As in :meth:`use`.
        """
        with self._lock:
            self._undo_above(owner)
            if self._reset_for(owner) == "always":
                self._push_entry(owner, is_used=True)
                self._here = None
            elif self._needs_entry(owner):
                self._look_at_top()
                self._stand(owner)

    def touch(self) -> None:
        """Note a use without an owner; it is undone with the newest entry."""
        with self._lock:
            self._here = None

    def cut_off_if_changed(self, owner: Owner) -> bool:
        """Cut the guest off until it is put back, if it has changes of an owner; say whether that was done.

        It is not done as long as others, who changed the guest later, are still
        at work: they may need the network, and cut the guest off themselves.

        Raises:
            SwitchFailed: The switch has ended.
        """
        with self._lock:
            owners = self._owners()
            if self._is_detached or owner not in owners:
                return False
            if not all(each.ended for each in owners[owners.index(owner) :]):
                return False
            self._state.detach()
            self._is_detached = True
            return True

    def drop_unreached(self, owner: Owner) -> None:
        """Drop the newest entry if it is an owner's and nothing was changed on the owner's behalf.

        Raises:
            SwitchFailed: The switch has ended.
        """
        with self._lock:
            if self._is_on_top(owner):
                self._look_at_top()

    def has_changes_of(self, owner: Owner) -> bool:
        """Say whether the guest has changes of an owner that can be undone."""
        with self._lock:
            return owner in self._owners()

    def losers(self, owner: Owner) -> list[Owner]:
        """Return the owners that have not ended and lose their changes when ``owner``'s are undone.

        These are the owners that changed the guest after ``owner``. If the point
        before ``owner``'s changes can no longer be restored (``owner`` switched
        the guest off, for instance), all other owners lose theirs. The oldest
        comes first.
        """
        with self._lock:
            owners = self._owners()
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

    def _owners(self) -> list[Owner]:
        """Return the owners that have changed the guest, the oldest first."""
        entries = self._entries[:-1] if self._is_top_unreached() else self._entries
        return [entry.owner for entry in entries]

    def _push_entry(self, owner: Owner, *, is_used: bool) -> None:
        if self._needs_entry(owner):
            self._look_at_top()
            before, reached = self._stand(owner)
            self._entries.append(_Entry(owner=owner, before=before, is_used=is_used, reached=reached))
        elif is_used and self._is_on_top(owner):
            self._entries[-1].is_used = True

    def _is_top_unreached(self) -> bool:
        """Say whether nobody has changed the guest since the newest entry; of the others this is known."""
        if not self._entries or self._entries[-1].is_used:
            return False
        try:
            return self._state.reached() <= self._entries[-1].reached
        except SwitchFailed:
            return False  # nobody knows, so it counts as changed

    def _look_at_top(self) -> None:
        """See whether neighbours have changed the guest since the newest entry; drop the entry if not."""
        if self._is_top_unreached():
            self._entries.pop()
        elif self._entries and not self._entries[-1].is_used:
            self._entries[-1].is_used = True
            self._here = None

    def _stand(self, owner: Owner) -> tuple[Point, int]:
        """Return the point that the guest stands at; take a savepoint if it has changed since the last.

        The number is that of the frames before, so that those which come
        meanwhile count. What came while no owner was at work is lost with the
        next reset if no savepoint can be taken.
        """
        reached = self._state.reached()
        if self._here is None or self._has_left_here(reached):
            try:
                self._here, self._reached_here = self._take(owner), reached
            except SnapshotFailed as failure:
                if self._here is None:
                    raise
                _log.info("%s", failure)
        return self._here, reached

    def _note_here(self) -> None:
        """Once the guest is ready, note how many frames had reached it by then."""
        if self._reached_here is None and self._state.is_ready:
            self._reached_here = self._state.reached()

    def _has_left_here(self, reached: int) -> bool:
        """Say whether frames have come since the guest was put to the point where it stands."""
        self._note_here()
        return self._reached_here is not None and reached > self._reached_here

    def _try_to_undo(self, owner: Owner) -> bool:
        """Undo as :meth:`_undo_above` does, for an owner that uses a neighbour; say whether it is done."""
        try:
            self._undo_above(owner)
        except SwitchFailed:
            raise
        except KvmError as failure:
            self._given_up.add(owner)
            _log.warning("%s stays cut off from %s: %s", self._guest, owner.name, failure)
            return False
        return True

    def _undo_above(self, owner: Owner) -> None:
        """Of the entries newer than the owner's, undo the oldest whose owner has ended, and all after it."""
        if self._first_to_undo(owner) is None:
            return
        self._look_at_top()  # an entry that is dropped is not undone
        index = self._first_to_undo(owner)
        if index is not None:
            self._undo_down_to(index)

    def _first_to_undo(self, owner: Owner) -> int | None:
        owners = [entry.owner for entry in self._entries]
        own = len(owners) - owners[::-1].index(owner) if owner in owners else 0
        return next((index for index, each in enumerate(owners[own:], start=own) if each.ended), None)

    def _undo_down_to(self, index: int) -> None:
        undone = self._entries[index:]
        if lost := [entry.owner.name for entry in undone if not entry.owner.ended]:
            _log.warning("%s: what %s did is undone early", self._guest, " and ".join(lost))
        begun = time.monotonic()
        reached = self._state.reached()
        tier = self._state.restore(undone[0].before)
        self._here, self._reached_here = undone[0].before, reached
        self._is_detached = False
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
        """Drop the points that no entry holds, and at which the guest does not stand.

        Called before the next savepoint is taken, and not after each reset:
        dropping takes time from a test, and one savepoint more costs little.
        """
        reachable = {id(self._here), *(id(entry.before) for entry in self._entries)}
        for point in [each for each in self._taken if id(each) not in reachable]:
            self._state.drop(point)
            self._taken.remove(point)

    def _note(self, kind: Kind, *, since: float, why: str, tier: Tier | None = None) -> None:
        seconds = time.monotonic() - since
        self._tell(Event(guest=self._guest, kind=kind, tier=tier, seconds=seconds, why=why))
