"""What an undo log knows of a guest: points that it can be put back to, and its neighbours' frames."""

from __future__ import annotations

from typing import Protocol

from pytest_kvm.provision.events import Tier

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

    @property
    def is_ready(self) -> bool:
        """Whether the guest has become ready; asking waits for nothing."""
        ...

    def reached(self) -> int:
        """Return how many frames have come from other guests that can have changed this one.

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
