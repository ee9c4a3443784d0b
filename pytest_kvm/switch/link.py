"""A guest's cable: it stays while the machines at its end change."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pytest_kvm.switch.counters import Tally
from pytest_kvm.switch.faults import Path
from pytest_kvm.switch.wire import wired

if TYPE_CHECKING:
    from collections.abc import Callable

    from pytest_kvm.switch.pcap import Capture
    from pytest_kvm.switch.port import Port
    from pytest_kvm.switch.segment import Segment


class Link:
    """One cable of a segment.

    Args:
        name: Told apart by it on its segment.
        segment: Where it ends.
        wake: Is called with a port that has something to send.
    """

    def __init__(self, name: str, segment: Segment, *, wake: Callable[[Port], None]) -> None:
        self.name = name
        self.segment = segment
        self.port: Port | None = None
        """The card at its end; None between two machines."""
        self.up = True
        self.out = Path()
        """Faults of what comes out of the guest."""
        self.into = Path()
        self.sent = Tally()
        """What came out of the guest."""
        self.got = Tally()
        """What went into it."""
        self.captures: list[Capture] = []
        self._wake = wake

    @property
    def clear(self) -> bool:
        """Whether frames go into the guest as they are, unseen."""
        return self.into.clear and not self.captures

    def hand(self, data: memoryview, *, frames: int) -> None:
        """Give frames, each behind its length, to the card."""
        if not self.up or self.port is None or not self.port.connected:
            self.got.dropped["unplugged"] += frames
        elif not self.port.offer(data):
            self.got.dropped["guest too slow"] += frames
        else:
            self.got.frames += frames
            self.got.bytes += len(data) - 4 * frames
            self._wake(self.port)

    def hand_one(self, frame: bytes) -> None:
        """Give one frame to the card, and to the captures if it was taken."""
        before = self.got.frames
        self.hand(memoryview(wired(frame)), frames=1)
        if self.got.frames > before:
            for capture in self.captures:
                capture.take(frame)
