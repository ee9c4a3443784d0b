"""What an undo log knows of a guest: points that it can be put back to, and its neighbours' frames."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol, Self

from pytest_kvm.provision.events import Tier

Point = object
"""A state that a guest can be restored to, made by :class:`RestorableState`; compared by identity."""


class Traffic(NamedTuple):
    """How many frames have passed by which guests can have changed each other."""

    reached: int
    """Those that have come to the guest."""
    told: int
    """Those of the guest that have come to others."""


class Restored(NamedTuple):
    """How a point was restored."""

    tier: Tier
    seconds: float


class RestorableState(Protocol):
    """One guest's state on the hypervisor: memory and all writable disks together.

    Every method blocks until it is done. No method may use the guest's verbs,
    because they use the undo log.
    """

    @property
    def base(self) -> Point:
        """The state in which the guest became ready; asking for it waits for nothing."""
        ...

    @property
    def traffic_at_base(self) -> Traffic | None:
        """The frames that had passed when the guest became ready; None: it is not ready yet."""
        ...

    def take_all(self, states: Sequence[Self]) -> list[Point | Exception]:
        """Take savepoints of several guests, of which this is one, at one moment; wait for those that boot.

        Returns:
            For each guest its point; or why there is none, which for a guest that
            cannot be saved in its state is a :class:`~pytest_kvm.errors.SnapshotFailed`.
        """
        ...

    def restore_all(self, points: Sequence[tuple[Self, Point]]) -> list[Restored | Exception]:
        """Restore points of several guests, of which this is one; wait for those that boot.

        Guests that savepoints are loaded into go on together. A point can be
        restored as often as wanted. Points of a guest that were taken after the
        one that is restored cannot be restored any more.

        Returns:
            For each guest how it was done; or why it could not be, and then the guest stays detached.
        """
        ...

    def reaches(self, point: Point) -> bool:
        """Say whether a point can still be restored: ``base`` always can, others end with their machine."""
        ...

    def drop(self, point: Point) -> None:
        """Forget a point that was taken, and log a failure; never called for ``base``."""
        ...

    def traffic(self) -> Traffic:
        """Return how many frames have passed by which guests can have changed each other.

        Raises:
            SwitchFailed: The switch has ended.
        """
        ...

    def detach(self) -> None:
        """Let the guest and its neighbours exchange no frames until it is restored.

        Raises:
            SwitchFailed: The switch has ended.
        """
        ...
