"""``Capture``: the frames that pass a segment or a link, in a file that grows, and as packets."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Protocol

from pytest_kvm.errors import SpecError, SwitchFailed, WaitTimeout
from pytest_kvm.handles.block import Block
from pytest_kvm.handles.condition import Condition, as_predicate, name_of
from pytest_kvm.switch.pcapng import CaptureReader, Written

if TYPE_CHECKING:
    from pytest_kvm.handles.segment import GuestNic, Segment
    from pytest_kvm.switch.packets import Packet

_SHOWN = 20
"""Packets that a time-out shows."""


class CaptureSource(Protocol):
    """What writes one capture's file: the switch."""

    def flush(self) -> Written:
        """Flush all frames that have passed to the file; say how far it has come."""
        ...

    def wait(self, *, frames: int, timeout: float) -> None:
        """Wait until the file holds more than ``frames`` frames, nothing more is written, or time is up."""
        ...

    def end(self) -> Written:
        """Finish the file; say how far it has come."""
        ...


class Capture(Block):
    """What passes a segment or a guest's link, from the capture's beginning until it is stopped.

    It is stopped by :meth:`stop`, at the end of a ``with`` block, or when the
    test or fixture has ended that began it. Iterating over it yields the packets
    that were captured until then, each a :class:`~pytest_kvm.Packet`. Any thread
    may use it.

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
        self._lock = threading.Lock()
        self._ended: Written | None = None

    def __repr__(self) -> str:
        return f"<Capture of {self._what}: {self.path}{', stopped' if self._ended else ''}>"

    def __iter__(self) -> Iterator[Packet]:
        """Yield the packets that were captured until now."""
        return self._packets_until(time.monotonic())

    @property
    def packets(self) -> list[Packet]:
        """The packets that were captured until now."""
        return list(self)

    def wait_for_packet(self, condition: Condition, *, timeout: float | None = None) -> Packet:
        """Return the first packet that a condition is true of; it may be captured already.

        Args:
            condition: A filter expression or a function, as in :meth:`Segment.drop`.
            timeout: Seconds; None: 30, multiplied by the run's time-out factor.

        Raises:
            MissingDependency: libpcap, which compiles filter expressions, is not installed.
            SpecError: The condition is wrong; the test or fixture has ended that began the capture.
            SwitchFailed: The capture has broken off, or the switch has ended.
            WaitTimeout: No such packet came; the last packets are shown.
        """
        is_wanted = as_predicate(condition, field=f"{self._what}: wait_for_packet")
        seconds = self._patience if timeout is None else timeout
        last: deque[Packet] = deque(maxlen=_SHOWN)
        count = 0
        for packet in self._packets_until(time.monotonic() + seconds):
            if is_wanted(packet):
                return packet
            count += 1
            last.append(packet)
        until = "until the capture was stopped" if self._ended else f"within {seconds:g} s"
        raise WaitTimeout(
            f"{self._what}: no packet matched {name_of(condition)} {until}; captured: {count}",
            details="\n".join(["the last of them:", *map(repr, last)]) if last else "",
        )

    def assert_no_packet(self, condition: Condition, *, during: float = 0.0) -> None:
        """Fail if a condition is true of any packet that was captured until now.

        Args:
            condition: As in :meth:`wait_for_packet`.
            during: Go on for so many seconds, and fail at once if such a packet comes.

        Raises:
            AssertionError: There is such a packet; it is shown.
            MissingDependency: As in :meth:`wait_for_packet`.
            SpecError: The condition is wrong; the test or fixture has ended that began the capture.
            SwitchFailed: The capture has broken off, or the switch has ended.
        """
        __tracebackhide__ = True
        is_unwanted = as_predicate(condition, field=f"{self._what}: assert_no_packet")
        for packet in self._packets_until(time.monotonic() + during):
            if is_unwanted(packet):
                raise AssertionError(f"{self._what}: a packet matched {name_of(condition)}: {packet!r}")

    def flush(self) -> None:
        """Write all frames that have passed to the file, for other programs that read it now.

        Raises:
            SwitchFailed: The file does not hold all frames that passed; or the switch has ended.
        """
        self._check(self._written())

    def stop(self) -> None:
        """Stop the capture; a second call does nothing.

        Raises:
            SwitchFailed: The file does not hold all frames that passed; or the switch has ended.
        """
        with self._lock:
            if self._ended is not None:
                return
            self._ended = self._source.end()
        self._check(self._ended)

    def _end(self) -> None:
        self.stop()

    def _packets_until(self, deadline: float) -> Iterator[Packet]:
        """Yield the packets that were captured, and those that are, until a moment (monotonic).

        A guest may send faster than packets are read. So at that moment it is noted
        how many there are, and as many are yielded.
        """
        from pytest_kvm.switch.packets import Packet  # noqa: PLC0415 - loads dpkt

        known, written, is_over = 0, Written(0, ""), False
        with self._open() as file:
            frames = iter(CaptureReader(file))
            while True:
                if not is_over and (known == written.frames or time.monotonic() >= deadline):
                    is_over = time.monotonic() >= deadline
                    written = self._written()
                if known < written.frames:
                    known += 1
                    yield Packet(*next(frames))
                    continue
                self._check(written)
                if is_over or written is self._ended:
                    return
                self._source.wait(frames=known, timeout=max(0.0, deadline - time.monotonic()))

    def _open(self) -> BinaryIO:
        try:
            return self.path.open("rb")
        except FileNotFoundError:
            raise SpecError(
                f"the capture of {self._what} has no file any more",
                resolution="use it before the test or fixture has ended that began it, or copy its file",
            ) from None

    def _written(self) -> Written:
        """Return how far the file has come, of all that has passed until now."""
        with self._lock:
            return self._ended or self._source.flush()

    def _check(self, written: Written) -> None:
        if written.problem:
            raise SwitchFailed(f"the capture of {self._what} has broken off: {written.problem}")


class CaptureControl(Protocol):
    """Begins captures on behalf of the test or fixture that is at work."""

    def begin(self, segment: Segment, nics: Sequence[GuestNic], *, limit: int) -> Capture:
        """Begin a capture.

        Args:
            segment: The segment.
            nics: The cards whose links are captured; none: the segment.
            limit: Bytes that the file may have.

        Raises:
            SpecError: The segment was removed, or the test or fixture has ended.
            SwitchFailed: The file cannot be written, or the switch has ended.
        """
        ...
