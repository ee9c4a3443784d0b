"""Who changed a guest, in which order, and what it takes to undo it.

Like nested transactions that cost nothing until they are needed: a layer is
laid when its owner first uses the guest, on top of the layers of everybody who
changed it before. An owner's changes are undone when somebody else is about to
use the guest after the owner has ended; not before, and never in vain.
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
"""Where a guest can be put back to; whatever its :class:`State` hands out, told apart by identity."""


class State(Protocol):
    """One guest's state on the hypervisor: memory and all writable disks together.

    Every method blocks until it is done; a guest that still boots is waited for.
    None of them uses the guest's verbs, which would ask the ledger again.
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
        """Put the guest back to a point, as often as wanted, and say how.

        Points taken after this one are never asked for again, only dropped.

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
class _Layer:
    """An owner's changes, by what was there before them."""

    owner: Owner
    before: Point


class Ledger:
    """One guest's layers of changes.

    Args:
        guest: The guest's name.
        state: Takes and restores savepoints.
        reset: The spec's word on what becomes of a test's changes.
        tell: Is told of savepoints and resets.
    """

    def __init__(self, guest: str, state: State, *, reset: Reset, tell: Listener) -> None:
        self._guest = guest
        self._state = state
        self._reset: Reset = reset
        self._tell = tell
        self._layers: list[_Layer] = []
        self._here: Point | None = state.base
        """The point that the guest stands at; None once somebody has used it since."""
        self._taken: list[Point] = []
        self._lock = threading.Lock()

    def use(self, owner: Owner) -> None:
        """Make the guest what ``owner`` may see; it is about to change it.

        Raises:
            SnapshotFailed: Changes of others cannot be undone or kept apart.
        """
        with self._lock:
            self._undo_above(owner)
            self._lay(owner)
            self._here = None

    def settle(self, owner: Owner) -> None:
        """Do the slow part of :meth:`use` in advance, as ``owner`` will most likely use the guest.

        Raises:
            SnapshotFailed: As in :meth:`use`.
        """
        with self._lock:
            self._undo_above(owner)
            if self._word_of(owner) == "always":
                self._lay(owner)
                self._here = None
            elif self._lays(owner):
                self._here = self._point(owner)

    def touch(self) -> None:
        """Note a use by somebody whose changes nobody undoes: they join the topmost layer."""
        with self._lock:
            self._here = None

    def has_changes_of(self, owner: Owner) -> bool:
        """Say whether there is anything of an owner's to undo."""
        with self._lock:
            return any(layer.owner is owner for layer in self._layers)

    def losers(self, owner: Owner) -> list[Owner]:
        """Return who has not ended and loses its changes when ``owner``'s are undone, first one first.

        That is whoever changed the guest afterwards; all others too, if what
        was there before is lost, as it is when the owner switched the guest off.
        """
        with self._lock:
            owners = [layer.owner for layer in self._layers]
            if owner not in owners:
                return []
            own = owners.index(owner)
            losing = owners[own:] if self._state.reaches(self._layers[own].before) else owners
            return [each for each in dict.fromkeys(losing) if not each.ended and each is not owner]

    # ------------------------------------------------------------ with the lock held

    def _word_of(self, owner: Owner) -> Reset:
        return owner.reset or self._reset

    def _is_on_top(self, owner: Owner) -> bool:
        return bool(self._layers) and self._layers[-1].owner is owner

    def _lays(self, owner: Owner) -> bool:
        """Say whether the owner's next change begins a layer."""
        return self._word_of(owner) != "never" and not self._is_on_top(owner)

    def _lay(self, owner: Owner) -> None:
        if self._lays(owner):
            self._layers.append(_Layer(owner=owner, before=self._point(owner)))

    def _point(self, owner: Owner) -> Point:
        """Return the point where the guest stands; if there is none yet, take it."""
        return self._take(owner) if self._here is None else self._here

    def _undo_above(self, owner: Owner) -> None:
        """Undo what others have done and ended, as far as it lies on top of the owner's own."""
        owners = [layer.owner for layer in self._layers]
        own = len(owners) - owners[::-1].index(owner) if owner in owners else 0
        for index, each in enumerate(owners[own:], start=own):
            if each.ended:
                self._undo_down_to(index)
                return

    def _undo_down_to(self, index: int) -> None:
        undone = self._layers[index:]
        if lost := [layer.owner.name for layer in undone if not layer.owner.ended]:
            _log.warning("%s: what %s did is undone early", self._guest, " and ".join(lost))
        begun = time.monotonic()
        tier = self._state.restore(undone[0].before)
        self._here = undone[0].before
        del self._layers[index:]
        owners = dict.fromkeys(layer.owner.name for layer in undone)
        self._note("reset", since=begun, tier=tier, why="after " + ", ".join(owners))

    def _take(self, owner: Owner) -> Point:
        self._drop_unreachable()
        begun = time.monotonic()
        try:
            point = self._state.take()
        except SnapshotFailed as error:
            raise self._refused(error, owner) from error
        self._taken.append(point)
        self._note("savepoint", since=begun, why=f"before {owner.name}")
        return point

    def _refused(self, error: SnapshotFailed, owner: Owner) -> SnapshotFailed:
        changed = f"what {self._layers[-1].owner.name} did" if self._layers else "what was done before"
        return type(error)(
            f"{self._guest}: no savepoint between {changed} and {owner.name}: {error.brief}",
            details=error.details,
            resolution=f'{error.resolution or "remove what is in the way"}, or say reset="never"',
        )

    def _drop_unreachable(self) -> None:
        """Drop the points that no layer leads back to.

        Only before another is taken: nobody waits for a drop of its own, and
        one guest never has more than one point too many.
        """
        reachable = {id(layer.before) for layer in self._layers}
        for point in [each for each in self._taken if id(each) not in reachable]:
            self._state.drop(point)
            self._taken.remove(point)

    def _note(self, kind: Kind, *, since: float, why: str, tier: Tier | None = None) -> None:
        seconds = time.monotonic() - since
        self._tell(Event(guest=self._guest, kind=kind, tier=tier, seconds=seconds, why=why))
