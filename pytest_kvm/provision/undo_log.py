"""Who changed a guest, in which order, and which savepoint undoes it.

Each owner (a test, or a fixture of a wider scope) gets an entry when it is about
to use the guest. The entry holds the point that the guest stood at before. When
an owner has ended and another owner is about to use the guest, the guest is
restored to that point. A guest that is not used again is not restored.

Guests on a segment change each other. So an owner that uses one of them gets an
entry on the others, too; when it has ended, that entry goes if no frame has come
that can have changed the guest. What takes time is done by
:mod:`~pytest_kvm.provision.joint_reset`, for several guests together.
"""

from __future__ import annotations

import logging
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING
from weakref import WeakSet

from pytest_kvm.errors import SnapshotFailed, SwitchFailed
from pytest_kvm.provision.events import Event, EventListener, Kind, Tier
from pytest_kvm.provision.restorable_state import Point, RestorableState, Restored, Traffic

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
    reached: int
    """How many frames had come to the guest when the owner's time began."""
    has_changed: bool = False
    """Whether the guest was changed in the owner's time; of the newest entry, frames may tell more."""


class UndoLog:
    """The entries of one guest, the oldest first, and the point at which the guest stands.

    Only one thread at a time may call its methods. They change no guest but by
    ``state.detach()`` and ``state.drop()``.

    Args:
        guest: The guest's name.
        state: Takes and restores savepoints.
        reset: The spec's ``reset``, for owners that have none of their own.
        tell: Gets an event for each savepoint and each reset.
    """

    def __init__(self, guest: str, state: RestorableState, *, reset: Reset, tell: EventListener) -> None:
        self.guest = guest
        self.state = state
        self._reset: Reset = reset
        self._tell = tell
        self._entries: list[_Entry] = []
        self._here: Point | None = state.base
        """The point that the guest stands at, unless frames have come since; None if it was used since."""
        self._needless: list[Point] = []
        """Savepoints that hold the base and what neighbours have sent while no owner was at work."""
        self._left_here: Traffic | None = None
        """The frames that had passed at that point; None: see ``state.traffic_at_base``."""
        self._taken: list[Point] = []
        self._given_up: WeakSet[Owner] = WeakSet()
        """Owners that use neighbours, and whose changes by way of them cannot be kept apart."""
        self._is_detached = False

    # ------------------------------------------------------------ asked before a change

    def is_due(self, owner: Owner) -> bool:
        """Say whether there is something to undo, or an entry to make, before ``owner`` changes the guest."""
        return self.has_ended_above(owner) or self.needs_entry(owner)

    def has_ended_above(self, owner: Owner) -> bool:
        """Say whether an owner that has ended has an entry that is newer than the changes of ``owner``."""
        return any(entry.owner.ended for entry in self._entries) and any(
            entry.owner.ended for _, entry in self._above(owner)
        )

    def needs_entry(self, owner: Owner) -> bool:
        """Say whether the owner's next change needs a new entry."""
        return self.reset_for(owner) != "never" and not self._is_on_top(owner)

    def reset_for(self, owner: Owner) -> Reset:
        """Return the ``reset`` that counts for an owner: its own, or the spec's."""
        return owner.reset or self._reset

    def has_given_up(self, owner: Owner) -> bool:
        """Say whether the owner's changes by way of neighbours could not be kept apart before."""
        return owner in self._given_up

    def must_save(self, traffic: Traffic) -> bool:
        """Say whether the guest has changed since the last point, so that an entry needs a savepoint.

        Args:
            traffic: Of now.
        """
        return self._here is None or traffic.reached > self._traffic_here(traffic).reached

    def has_told(self, traffic: Traffic) -> bool:
        """Say whether others know more of the guest than it does at the last point.

        Args:
            traffic: Of now.
        """
        return traffic.told > self._traffic_here(traffic).told

    def has_changes_of(self, owner: Owner) -> bool:
        """Say whether the guest has changes of an owner that can be undone."""
        return any(entry.owner is owner for _, entry in self._changes())

    def losers(self, owner: Owner) -> list[Owner]:
        """Return the owners that have not ended and lose their changes when ``owner``'s are undone.

        These are the owners that changed the guest after ``owner``. If the point
        before ``owner``'s changes can no longer be restored (``owner`` switched
        the guest off, for instance), all other owners lose theirs. The oldest
        comes first.
        """
        changes = self._changes()
        own = next((index for index, entry in changes if entry.owner is owner), None)
        if own is None:
            return []
        reaches = self.state.reaches(self._entries[own].before)
        losing = [entry.owner for index, entry in changes if index >= own or not reaches]
        return [each for each in dict.fromkeys(losing) if not each.ended and each is not owner]

    def began_at_base(self, owner: Owner) -> bool:
        """Say whether the guest stood as it had become ready when an owner began to change it."""
        return any(entry.owner is owner and entry.before is self.state.base for entry in self._entries)

    def changers(self) -> list[Owner]:
        """Return the owners whose changes the guest has, the oldest first."""
        return [entry.owner for _, entry in self._changes()]

    # ------------------------------------------------------------ changes

    def push_entry(self, owner: Owner, *, traffic: Traffic) -> None:
        """Make an entry for an owner; the guest stands at a point.

        Args:
            owner: The owner at work.
            traffic: At the point; frames that have come since are the owner's.

        Raises:
            RuntimeError: The guest has left its last point, and there is no savepoint since.
        """
        if self._here is None:
            raise RuntimeError(f"{self.guest} stands at no point")
        self._entries.append(_Entry(owner=owner, before=self._here, reached=traffic.reached))

    def note_change(self, owner: Owner) -> None:
        """Note that an owner changes the guest from now on; it has an entry, if it needs one."""
        self._here = None
        if self._is_on_top(owner):
            self._entries[-1].has_changed = True

    def touch(self) -> None:
        """Note a change without an owner, or by one that has no entry; it goes with the newest entry."""
        self._here = None

    def give_up(self, owner: Owner) -> None:
        """Do not try again to keep apart what the owner does to the guest by way of neighbours."""
        self._given_up.add(owner)

    def cut_off_if_changed(self, owner: Owner) -> bool:
        """Cut the guest off until it is put back, if it has changes of an owner; say whether that was done.

        It is not done as long as others, who changed the guest later, are still
        at work: they may need the network, and cut the guest off themselves.

        Raises:
            SwitchFailed: The switch has ended.
        """
        owners = [entry.owner for _, entry in self._changes()]
        if self._is_detached or owner not in owners:
            return False
        if not all(each.ended for each in owners[owners.index(owner) :]):
            return False
        self.state.detach()
        self._is_detached = True
        return True

    def settle_entries(self, traffic: Traffic) -> None:
        """See whether frames have changed the guest since the newest entry; drop what undoes nothing.

        Args:
            traffic: Of now.
        """
        if (
            self._entries
            and not self._entries[-1].has_changed
            and traffic.reached > self._entries[-1].reached
        ):
            self._entries[-1].has_changed = True
            self._here = None
        self._entries = [entry for entry in self._entries if entry.has_changed or not entry.owner.ended]

    def settle_entries_of(self, owner: Owner) -> None:
        """Drop the entries of an owner, which has ended, if nothing was changed in its time.

        Raises:
            SwitchFailed: The switch has ended.
        """
        if any(entry.owner is owner for entry in self._entries):
            self.settle_entries(self.state.traffic())

    # ------------------------------------------------------------ savepoints and resets

    def index_to_undo(self, owner: Owner) -> int | None:
        """Return the entry to undo, with all after it, before ``owner`` uses the guest; None: there is none.

        It is, of the entries newer than the owner's, the oldest whose owner has ended.
        """
        return next((at for at, entry in self._above(owner) if entry.owner.ended), None)

    def has_ended_from(self, index: int) -> bool:
        """Say whether all owners have ended that changed the guest in the time of an entry, or later."""
        return all(entry.owner.ended for at, entry in self._changes() if at >= index)

    def before(self, index: int) -> Point:
        """Return the point to restore for undoing the changes of an entry and of all after it.

        If the one before them is lost, and nobody would miss what it had more than the base, it is the base.
        """
        point = self._entries[index].before
        is_missed = point not in self._needless or self._given_up
        return point if is_missed or self.state.reaches(point) else self.state.base

    def note_reset(self, index: int, restored: Restored, *, traffic: Traffic) -> None:
        """Note that the guest was restored to the point before an entry.

        Args:
            index: As :meth:`index_to_undo` has returned it.
            restored: How it was done.
            traffic: Before the reset: what came until then is undone.
        """
        point, undone = self.before(index), self._entries[index:]
        del self._entries[index:]
        for entry in self._entries:
            entry.reached = traffic.reached
        self._here, self._left_here = point, traffic
        self._is_detached = False
        changed = dict.fromkeys(entry.owner for entry in undone if entry.has_changed)
        if lost := [owner.name for owner in changed if not owner.ended]:
            _log.warning("%s: what %s did is undone early", self.guest, " and ".join(lost))
        owners = [owner.name for owner in changed]
        self._note("reset", seconds=restored.seconds, tier=restored.tier, why="after " + ", ".join(owners))

    def note_savepoint(self, point: Point, owner: Owner, *, traffic: Traffic, seconds: float) -> None:
        """Note that a savepoint was taken, at which the guest stands.

        The newest entry counts as changed from now on: what came to the guest until
        the last moment is in the savepoint.

        Args:
            point: The savepoint.
            owner: The owner before whose changes it was taken.
            traffic: Before it.
            seconds: How long it took.
        """
        self._taken.append(point)
        if self._here is self.state.base or self._here in self._needless:
            self._needless.append(point)
        self._here, self._left_here = point, traffic
        if self._entries:
            self._entries[-1].has_changed = True
        self._note("savepoint", seconds=seconds, why=f"before {owner.name}")

    @property
    def has_point(self) -> bool:
        """Whether an entry can be made without another savepoint.

        What came while no owner was at work is lost then with the next reset.
        """
        return self._here is not None

    def refusal(self, failure: SnapshotFailed, owner: Owner) -> SnapshotFailed:
        """Return the error that there is no savepoint before an owner's changes."""
        changes = [entry.owner.name for entry in self._entries if entry.has_changed]
        changed = f"what {changes[-1]} did" if changes else "what was done before"
        refusal = type(failure)(
            f"{self.guest}: no savepoint between {changed} and {owner.name}: {failure.brief}",
            details=failure.details,
            resolution=f'{failure.resolution or "remove what is in the way"}, or say reset="never"',
        )
        refusal.__cause__ = failure
        return refusal

    def drop_unreachable(self) -> None:
        """Drop the points that no entry holds, and at which the guest does not stand.

        Called before the next savepoint is taken, and not after each reset:
        dropping takes time from a test, and one savepoint more costs little.
        """
        reachable = {id(self._here), *(id(entry.before) for entry in self._entries)}
        for point in [each for each in self._taken if id(each) not in reachable]:
            self.state.drop(point)
            self._taken.remove(point)
            self._needless = [each for each in self._needless if each is not point]

    # ------------------------------------------------------------ inside

    def _is_on_top(self, owner: Owner) -> bool:
        return bool(self._entries) and self._entries[-1].owner is owner

    def _above(self, owner: Owner) -> list[tuple[int, _Entry]]:
        """Return the entries that are newer than the owner's newest change, each with its index."""
        own = max((index for index, entry in self._changes() if entry.owner is owner), default=-1)
        return list(enumerate(self._entries))[own + 1 :]

    def _changes(self) -> list[tuple[int, _Entry]]:
        """Return the entries in whose owners' time the guest was changed, each with its index."""
        entries = list(enumerate(self._entries))
        return [(at, entry) for at, entry in entries if entry.has_changed or self._is_reached_top(entry)]

    def _is_reached_top(self, entry: _Entry) -> bool:
        """Say whether an entry is the newest and frames have come since; of the others this is known."""
        if entry is not self._entries[-1]:
            return False
        try:
            return self.state.traffic().reached > entry.reached
        except SwitchFailed:
            return True  # nobody knows, so the guest counts as changed

    def _traffic_here(self, now: Traffic) -> Traffic:
        """Return the frames that had passed at the last point; all until now, while the guest boots."""
        return self._left_here or self.state.traffic_at_base or now

    def _note(self, kind: Kind, *, seconds: float, why: str, tier: Tier | None = None) -> None:
        self._tell(Event(guest=self.guest, kind=kind, tier=tier, seconds=seconds, why=why))
