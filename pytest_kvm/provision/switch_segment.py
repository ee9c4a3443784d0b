"""A segment of the run's own switch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pytest_kvm.handles.condition import Condition
    from pytest_kvm.handles.segment import Counters
    from pytest_kvm.handles.segment_backend import MachineCard
    from pytest_kvm.provision.run_resources import Lazy
    from pytest_kvm.switch.client import Switch
    from pytest_kvm.switch.link import Direction
    from pytest_kvm.switch.pcapng import Written


class SwitchSegment:
    """Implements :class:`pytest_kvm.handles.segment_backend.SegmentBackend`; makes the segment.

    Args:
        switch: The run's switch.
        tag: The segment's name in the switch.

    Raises:
        SwitchFailed: The switch did not start.
    """

    network = None

    def __init__(self, switch: Lazy[Switch], tag: str) -> None:
        self._switch = switch
        self._tag = tag
        switch.get().add_segment(tag)

    def check(self) -> None:
        """Check that the switch runs."""
        self._switch.get().check()

    def remove(self) -> None:
        """Remove the segment with its links."""
        self._switch.get().remove_segment(self._tag)

    def add_link(self, link: str) -> None:
        """Make a link, plugged in."""
        self._switch.get().add_link(self._tag, link)

    def remove_link(self, link: str) -> None:
        """Remove a link."""
        self._switch.get().remove_link(self._tag, link)

    def set_link(self, link: str, *, up: bool) -> bool:
        """Plug a link in, or unplug it; say whether it was plugged in."""
        return self._switch.get().set_link(self._tag, link, up=up)

    def attach(self, link: str, card: MachineCard | None) -> bool:
        """Attach a link to the port of a machine's card; say whether the link is plugged in."""
        return self._switch.get().attach(self._tag, link, port=None if card is None else card.port)

    def is_drained(self, card: MachineCard) -> bool:
        """Say whether QEMU has taken all that was sent to a card."""
        return self._switch.get().is_drained(card.port)

    def traffic(self, link: str) -> tuple[int, int]:
        """Return how many frames have come to a link, and from it to others."""
        return self._switch.get().traffic(self._tag, link)

    def counters(self) -> Mapping[str, Counters]:
        """Return what passed each link in each direction."""
        return self._switch.get().counters(self._tag)

    def cut(self, groups: Sequence[Sequence[str]], *, joins_others: bool) -> int:
        """Let frames pass only between links of the same group."""
        return self._switch.get().cut(self._tag, groups, joins_others=joins_others)

    def fault(
        self,
        kind: str,
        *,
        link: str | None,
        direction: Direction | None,
        seed: str,
        settings: Mapping[str, float],
    ) -> int:
        """Apply a fault to frames from now on."""
        return self._switch.get().fault(
            self._tag, kind, link=link, direction=direction, seed=seed, settings=settings
        )

    def dropping(self, condition: Condition) -> Callable[[str | None, Direction | None], int]:
        """Return what has the frames dropped that a condition is true of."""
        switch = self._switch.get()
        if isinstance(condition, str):
            from pytest_kvm.switch.filters import compile_filter  # noqa: PLC0415 - loads ctypes

            program = compile_filter(condition)
            return lambda link, direction: switch.filter(self._tag, program, link=link, direction=direction)
        from pytest_kvm.switch.packets import Packet  # noqa: PLC0415 - loads dpkt

        def judge(frame: bytes) -> bool:
            return condition(Packet(frame, time()))

        return lambda link, direction: switch.ask(self._tag, judge, link=link, direction=direction)

    def undo(self, number: int) -> None:
        """Undo a fault or a cut."""
        self._switch.get().undo(number)

    def capture(self, path: Path, *, links: Sequence[str], comment: str, limit: int) -> SwitchCapture:
        """Have the switch write what crosses the segment, or passes links, into a new file."""
        switch = self._switch.get()
        number = switch.capture(self._tag, path, links=links, comment=comment, limit=limit)
        return SwitchCapture(switch=switch, number=number)


@dataclass(frozen=True, kw_only=True)
class SwitchCapture:
    """Writes one capture's file."""

    switch: Switch
    number: int

    def flush(self) -> Written:
        """Flush all frames that have passed to the file."""
        return self.switch.flush_capture(self.number)

    def wait(self, *, frames: int, timeout: float) -> None:
        """Wait until the file holds more frames."""
        self.switch.wait_capture(self.number, frames=frames, timeout=timeout)

    def end(self) -> Written:
        """Finish the file."""
        return self.switch.end_capture(self.number)

    def has_broken(self) -> bool:
        """Say whether the switch has ended."""
        return self.switch.has_ended()
