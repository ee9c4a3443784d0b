"""Faults that frames meet on their way: each fault says which copies of a frame leave it, and when.

A fault gets every frame once, in the order in which frames come, with the
moment at which the frame comes. It does not wait, but computes the moment at
which the frame leaves. So a frame's way through several faults is known at
once, and the switch waits only for the end of it. Each fault has a random
generator of its own, so the same traffic meets the same faults again.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from random import Random
from typing import TYPE_CHECKING, Protocol

from pytest_kvm.switch.frames import HEADER

if TYPE_CHECKING:
    from pytest_kvm.switch.filters import FrameFilter


class FrameFault(Protocol):
    """One fault, with its settings."""

    def through(self, frame: bytes, at: float) -> Iterator[tuple[bytes, float]]:
        """Yield the copies of a frame that leave this fault, each with the moment at which it leaves.

        Args:
            frame: The frame that comes.
            at: The moment at which it comes (seconds, monotonic).
        """
        ...


@dataclass(kw_only=True)
class Loss:
    """Some frames are lost."""

    probability: float
    chance: Random

    def through(self, frame: bytes, at: float) -> Iterator[tuple[bytes, float]]:
        """Yield the frame, or nothing."""
        if self.chance.random() >= self.probability:
            yield frame, at


@dataclass(kw_only=True)
class Duplicate:
    """Some frames arrive twice."""

    probability: float
    chance: Random

    def through(self, frame: bytes, at: float) -> Iterator[tuple[bytes, float]]:
        """Yield the frame once or twice."""
        yield frame, at
        if self.chance.random() < self.probability:
            yield frame, at


@dataclass(kw_only=True)
class Corrupt:
    """In some frames one bit behind the Ethernet header is flipped."""

    probability: float
    chance: Random

    def through(self, frame: bytes, at: float) -> Iterator[tuple[bytes, float]]:
        """Yield the frame, whole or damaged."""
        if len(frame) > HEADER and self.chance.random() < self.probability:
            damaged = bytearray(frame)
            damaged[self.chance.randrange(HEADER, len(frame))] ^= 1 << self.chance.randrange(8)
            frame = bytes(damaged)
        yield frame, at


@dataclass(kw_only=True)
class Rate:
    """Frames leave one after another at a bit rate; a frame that comes while the queue is full is lost."""

    bits_per_second: float
    queue: int
    """Bytes that may wait to leave."""
    chance: Random
    _free_at: float = field(default=0.0, init=False)

    def through(self, frame: bytes, at: float) -> Iterator[tuple[bytes, float]]:
        """Yield the frame at the moment when its last bit has left, or nothing."""
        begins = max(self._free_at, at)
        if (begins - at) * self.bits_per_second / 8 <= self.queue:
            self._free_at = begins + len(frame) * 8 / self.bits_per_second
            yield frame, self._free_at


@dataclass(kw_only=True)
class Delay:
    """Frames are delayed by a time that varies, and keep their order."""

    seconds: float
    jitter: float
    chance: Random
    _last: float = field(default=0.0, init=False)

    def through(self, frame: bytes, at: float) -> Iterator[tuple[bytes, float]]:
        """Yield the frame at a later moment."""
        wait = self.seconds + (self.chance.uniform(-self.jitter, self.jitter) if self.jitter else 0.0)
        self._last = max(self._last, at + max(0.0, wait))
        yield frame, self._last


@dataclass(kw_only=True)
class Reorder:
    """Some frames are held back, so that the frames behind overtake them."""

    probability: float
    hold: float
    """Seconds."""
    chance: Random

    def through(self, frame: bytes, at: float) -> Iterator[tuple[bytes, float]]:
        """Yield the frame now or at a later moment."""
        yield frame, at + self.hold if self.chance.random() < self.probability else at


KINDS: dict[str, type[Loss | Duplicate | Corrupt | Rate | Delay | Reorder]] = {
    "loss": Loss,
    "duplicate": Duplicate,
    "corrupt": Corrupt,
    "rate": Rate,
    "delay": Delay,
    "reorder": Reorder,
}
"""In the order in which a frame meets them; it does not matter which fault was set first."""


class Faults:
    """The faults of one direction of a link, or those of a segment."""

    def __init__(self) -> None:
        self._faults: dict[int, tuple[str, FrameFault]] = {}
        """By number, each with its kind."""
        self._order: list[tuple[str, FrameFault]] = []
        self.filters: dict[int, FrameFilter] = {}
        """By number; frames that one of these matches are dropped first of all."""
        self.asks: list[int] = []
        """Numbers of the faults that ask the test about each frame that is left; they come next."""

    @property
    def is_clear(self) -> bool:
        """Whether there are no faults, so that frames pass unchanged."""
        return not self.filters and self.are_filters_only

    @property
    def are_filters_only(self) -> bool:
        """Whether there are no faults but filters, so that frames which no filter matches pass unchanged."""
        return not (self._order or self.asks)

    def add(self, number: int, fault: FrameFault, *, kind: str) -> None:
        """Add a fault of a kind under its number."""
        self._faults[number] = kind, fault
        self._sort()

    def remove(self, number: int) -> None:
        """Remove a fault by its number."""
        self._faults.pop(number, None)
        self.filters.pop(number, None)
        if number in self.asks:
            self.asks.remove(number)
        self._sort()

    def through(self, frame: bytes, at: float, *, dropped: Counter[str]) -> list[tuple[bytes, float]]:
        """Return the copies of a frame that leave all faults, each with its moment.

        Args:
            frame: The frame.
            at: The moment at which it comes.
            dropped: Counts the copies that are lost, by the kind of the fault.
        """
        passing = [(frame, at)]
        for kind, fault in self._order:
            left: list[tuple[bytes, float]] = []
            for each, moment in passing:
                copies = list(fault.through(each, moment))
                if not copies:
                    dropped[kind] += 1
                left += copies
            passing = left
        return passing

    def _sort(self) -> None:
        kinds = list(KINDS)
        self._order = sorted(self._faults.values(), key=lambda each: kinds.index(each[0]))
