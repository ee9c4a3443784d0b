"""What can happen to a frame on its way: each fault says which copies leave it, and when.

A fault is told of every frame once, in the order in which frames come, and
computes with the moments it is given: one frame's way through several faults
is known at once, and only its end is waited for. Their chances come from a
generator of their own, so that the same traffic meets the same fate again.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from random import Random
from typing import Protocol

from pytest_kvm.switch.frames import HEADER


class Fault(Protocol):
    """One thing that happens to frames."""

    def through(self, frame: bytes, at: float) -> Iterator[tuple[bytes, float]]:
        """Yield what becomes of a frame that comes ``at`` a moment (seconds, monotonic)."""
        ...


@dataclass(kw_only=True)
class Loss:
    """Some frames are lost."""

    probability: float
    chance: Random

    def through(self, frame: bytes, at: float) -> Iterator[tuple[bytes, float]]:
        """Yield it, or nothing."""
        if self.chance.random() >= self.probability:
            yield frame, at


@dataclass(kw_only=True)
class Duplicate:
    """Some frames arrive twice."""

    probability: float
    chance: Random

    def through(self, frame: bytes, at: float) -> Iterator[tuple[bytes, float]]:
        """Yield it once or twice."""
        yield frame, at
        if self.chance.random() < self.probability:
            yield frame, at


@dataclass(kw_only=True)
class Corrupt:
    """In some frames one bit behind the Ethernet header is flipped."""

    probability: float
    chance: Random

    def through(self, frame: bytes, at: float) -> Iterator[tuple[bytes, float]]:
        """Yield it, whole or damaged."""
        if len(frame) > HEADER and self.chance.random() < self.probability:
            damaged = bytearray(frame)
            damaged[self.chance.randrange(HEADER, len(frame))] ^= 1 << self.chance.randrange(8)
            frame = bytes(damaged)
        yield frame, at


@dataclass(kw_only=True)
class Rate:
    """Frames leave one after another, at so many bits a second; what the queue does not hold is lost."""

    bits_per_second: float
    queue: int
    """Bytes that may wait."""
    chance: Random
    _free_at: float = field(default=0.0, init=False)

    def through(self, frame: bytes, at: float) -> Iterator[tuple[bytes, float]]:
        """Yield it when its last bit has left."""
        begins = max(self._free_at, at)
        if (begins - at) * self.bits_per_second / 8 <= self.queue:
            self._free_at = begins + len(frame) * 8 / self.bits_per_second
            yield frame, self._free_at


@dataclass(kw_only=True)
class Delay:
    """Frames come later, by a time that varies; they keep their order."""

    seconds: float
    jitter: float
    chance: Random
    _last: float = field(default=0.0, init=False)

    def through(self, frame: bytes, at: float) -> Iterator[tuple[bytes, float]]:
        """Yield it later."""
        wait = self.seconds + (self.chance.uniform(-self.jitter, self.jitter) if self.jitter else 0.0)
        self._last = max(self._last, at + max(0.0, wait))
        yield frame, self._last


@dataclass(kw_only=True)
class Reorder:
    """Some frames are held back, and those behind them overtake."""

    probability: float
    hold: float
    """Seconds."""
    chance: Random

    def through(self, frame: bytes, at: float) -> Iterator[tuple[bytes, float]]:
        """Yield it now or later."""
        yield frame, at + self.hold if self.chance.random() < self.probability else at


KINDS: dict[str, type[Loss | Duplicate | Corrupt | Rate | Delay | Reorder]] = {
    "loss": Loss,
    "duplicate": Duplicate,
    "corrupt": Corrupt,
    "rate": Rate,
    "delay": Delay,
    "reorder": Reorder,
}
"""In the order in which a frame meets them, whichever was set first."""


class Faults:
    """The faults on one stretch of a frame's way: a link's direction, or a segment."""

    def __init__(self) -> None:
        self._faults: dict[int, Fault] = {}
        self._order: list[Fault] = []
        self.asks: list[int] = []
        """Numbers of the faults that ask the test about each frame; they come first."""

    @property
    def clear(self) -> bool:
        """Whether frames pass as they are."""
        return not (self._order or self.asks)

    def add(self, number: int, fault: Fault) -> None:
        """Let a fault happen here."""
        self._faults[number] = fault
        self._sort()

    def remove(self, number: int) -> None:
        """Let it happen no longer."""
        self._faults.pop(number, None)
        if number in self.asks:
            self.asks.remove(number)
        self._sort()

    def through(self, frame: bytes, at: float) -> list[tuple[bytes, float]]:
        """Return what leaves, and when."""
        passing = [(frame, at)]
        for fault in self._order:
            passing = [left for each, moment in passing for left in fault.through(each, moment)]
        return passing

    def _sort(self) -> None:
        kinds = list(KINDS.values())
        self._order = sorted(self._faults.values(), key=lambda fault: kinds.index(type(fault)))  # type: ignore[arg-type]
