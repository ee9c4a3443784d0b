"""``Fault``: something that a test has done to a segment; and what sets faults."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from pytest_kvm.handles.block import Block

if TYPE_CHECKING:
    from pytest_kvm.handles.condition import Condition
    from pytest_kvm.handles.fault_verbs import FaultableSegment
    from pytest_kvm.handles.segment import GuestNic
    from pytest_kvm.switch.link import Direction


class Fault(Block):
    """A fault of a segment, from its beginning until it is undone.

    It is undone by :meth:`undo`, at the end of a ``with`` block, or when the
    test or fixture has ended that began it.

    Args:
        words: The fault in words.
        undo: Undoes it.
        is_random: Whether it makes random choices.
    """

    def __init__(self, words: str, *, undo: Callable[[Fault], None], is_random: bool = False) -> None:
        self.is_random = is_random
        """Whether it makes random choices, which follow from the run's seed."""
        self._words = words
        self._undo = undo
        self._is_undone = False

    def __repr__(self) -> str:
        return f"<Fault {self}>"

    def __str__(self) -> str:
        return f"{self._words} (undone)" if self._is_undone else self._words

    def undo(self) -> None:
        """Undo the fault; a second call does nothing.

        Raises:
            Exception: Whatever the function of a ``drop`` raised.
            SwitchFailed: The switch has ended.
        """
        if not self._is_undone:
            self._is_undone = True
            self._undo(self)

    def _end(self) -> None:
        self.undo()


@dataclass(frozen=True)
class Stretch:
    """A part of frames' way that a fault is on: one direction of a link, or the segment between the links."""

    nic: GuestNic | None = None
    """The card that the link belongs to; None: the segment."""
    direction: Direction | None = None
    """Seen from the guest; None: the segment."""

    @property
    def link(self) -> str | None:
        """The link's name; None: the segment."""
        return None if self.nic is None else self.nic.link

    def __str__(self) -> str:
        return "" if self.link is None else f"{self.link} {self.direction}"


class FaultControl(Protocol):
    """Sets faults of segments on behalf of the test or fixture that is at work.

    Before, guests that tests have changed which have ended are reset.

    Raises:
        SpecError: The segment was removed.
        SwitchFailed: The switch has ended.
    """

    def disturb(
        self,
        segment: FaultableSegment,
        kind: str,
        *,
        words: str,
        on: Sequence[Stretch],
        settings: Mapping[str, float],
    ) -> Fault:
        """Apply a fault to frames.

        Args:
            segment: The segment.
            kind: One of :data:`pytest_kvm.switch.faults.KINDS`.
            words: The fault in words.
            on: The parts of the way that it is on.
            settings: Fields of the kind's class.
        """
        ...

    def drop(self, segment: FaultableSegment, condition: Condition, *, on: Sequence[Stretch]) -> Fault:
        """Drop the frames that a condition is true of.

        Raises:
            MissingDependency: libpcap, which compiles filter expressions, is not installed.
            SpecError: The filter expression is wrong.
        """
        ...

    def cut(
        self,
        segment: FaultableSegment,
        words: str,
        *,
        groups: Sequence[Sequence[GuestNic]],
        joins_others: bool,
    ) -> Fault:
        """Let frames pass only between cards of the same group.

        Args:
            segment: The segment.
            words: The fault in words.
            groups: The groups.
            joins_others: Whether the cards in no group reach each other; else each of them is alone.
        """
        ...

    def heal(self, segment: FaultableSegment) -> None:
        """Undo all cuts; those of a wider scope come back when the caller has ended."""
        ...

    def set_cables(self, segment: FaultableSegment, nics: Sequence[GuestNic], *, plugged_in: bool) -> Fault:
        """Plug cables in, or unplug them, so that the guests see their carriers come or go."""
        ...

    def active(self, segment: FaultableSegment) -> list[Fault]:
        """Return the faults that are not undone, the oldest first."""
        ...
