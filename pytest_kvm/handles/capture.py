"""``Capture``: the frames that pass a segment or a link, in a file that grows, and as packets."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Protocol, Self

from pytest_kvm.errors import SwitchFailed, WaitTimeout
from pytest_kvm.switch.pcapng import CaptureReader

if TYPE_CHECKING:
    from pytest_kvm.handles.segment import GuestNic, Segment
    from pytest_kvm.switch.packets import Packet

_SHOWN = 20
"""Packets that a time-out shows."""


class CaptureSource(Protocol):
    """What writes one capture's file: the switch."""

    def flush(self) -> None:
        """Flush all frames that have passed to the file."""
        ...

    def wait(self, *, frames: int, timeout: float) -> bool:
        """Wait until the file holds more than ``frames`` frames; say whether it may.

        Raises:
            SwitchFailed: Nothing more is written.
        """
        ...

    def end(self) -> str:
        """Finish the file; return why it does not hold all frames that passed, or "" if it does."""
        ...


class Capture:
    """What passes a segment or a guest's link, from the capture's beginning until it is stopped.

    It is stopped by :meth:`stop`, at the end of a ``with`` block, or when the
    test or fixture has ended that began it. Iterating over it yields the packets
    that were captured until now, each a :class:`~pytest_kvm.Packet`.

    Args:
        what: What is captured, in words.
        path: Its file.
        source: What writes the file.
        patience: Seconds that a packet is waited for if the test names none.
    """

    def __init__(self, what: str, path: Path, *, source: CaptureSource, patience: float) -> None:
        self.path = path
        """The file, in the format pcapng, which Wireshark and tcpdump read. It grows while frames pass,
        and is removed after the test or fixture that began the capture."""
        self._what = what
        self._source = source
        self._patience = patience
        self._is_stopped = False

    def __repr__(self) -> str:
        return f"<Capture of {self._what}: {self.path}{', stopped' if self._is_stopped else ''}>"

    def __iter__(self) -> Iterator[Packet]:
        """Yield the packets that were captured until now."""
        self.flush()
        with self.path.open("rb") as file:
            yield from _packets(CaptureReader(file))

    @property
    def packets(self) -> list[Packet]:
        """The packets that were captured until now."""
        return list(self)

    def wait_for_packet(self, predicate: Callable[[Packet], bool], *, timeout: float | None = None) -> Packet:
        """Return the first packet that a predicate is true of; it may be captured already.

        Args:
            predicate: Gets each packet in turn.
            timeout: Seconds; None: 30, multiplied by the run's time-out factor.

        Raises:
            WaitTimeout: No such packet came; the last packets are shown.
            SwitchFailed: The capture has broken off, or the switch has ended.
        """
        seconds = self._patience if timeout is None else timeout
        last: deque[Packet] = deque(maxlen=_SHOWN)
        count = 0
        for packet in self._packets_until(time.monotonic() + seconds):
            if predicate(packet):
                return packet
            count += 1
            last.append(packet)
        raise WaitTimeout(
            f"{self._what}: no such packet within {seconds:g} s; {count} others were captured",
            details="\n".join(["the last of them:", *map(repr, last)]) if last else "",
        )

    def assert_no_packet(self, predicate: Callable[[Packet], bool], *, during: float = 0.0) -> None:
        """Fail if a predicate is true of any packet that was captured until now.

        Args:
            predicate: Gets each packet in turn.
            during: Go on for so many seconds, and fail at once if such a packet comes.

        Raises:
            AssertionError: There is such a packet; it is shown.
            SwitchFailed: The capture has broken off, or the switch has ended.
        """
        self.flush()
        for packet in self._packets_until(time.monotonic() + during):
            if predicate(packet):
                raise AssertionError(f"{self._what}: a packet that is not to pass: {packet!r}")

    def flush(self) -> None:
        """Write all frames that have passed to the file, for other programs that read it now."""
        if not self._is_stopped:
            self._source.flush()

    def stop(self) -> None:
        """Stop the capture; a second call does nothing.

        Raises:
            SwitchFailed: The file does not hold all frames that passed; or the switch has ended.
        """
        if self._is_stopped:
            return
        self._is_stopped = True
        problem = self._source.end()
        if problem:
            raise SwitchFailed(f"the capture of {self._what} has broken off: {problem}")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop the capture; if the block has failed, a failure of this is added to that as a note."""
        try:
            self.stop()
        except SwitchFailed as failure:
            if error is None:
                raise
            error.add_note(f"and {failure}")

    def _packets_until(self, deadline: float) -> Iterator[Packet]:
        """Yield the packets that were captured, and those that are, until a moment (monotonic)."""
        known = 0
        with self.path.open("rb") as file:
            reader = CaptureReader(file)
            while True:
                for packet in _packets(reader):
                    known += 1
                    yield packet
                left = deadline - time.monotonic()
                if self._is_stopped or left <= 0 or not self._source.wait(frames=known, timeout=left):
                    return


class CaptureControl(Protocol):
    """Begins captures on behalf of the test or fixture that is at work."""

    def begin(self, segment: Segment, nics: Sequence[GuestNic], *, limit: int) -> Capture:
        """Begin a capture.

        Args:
            segment: The segment.
            nics: The cards whose links are captured; none: the segment.
            limit: Bytes that the file may have.

        Raises:
            SpecError: The segment was removed.
            SwitchFailed: The file cannot be written, or the switch has ended.
        """
        ...


def _packets(reader: CaptureReader) -> Iterator[Packet]:
    from pytest_kvm.switch.packets import Packet  # noqa: PLC0415 - loads dpkt

    for frame, moment, link, direction in reader:
        yield Packet(frame, moment, link, direction)
