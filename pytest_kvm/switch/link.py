"""Links (guests' cables) with their counters, and ports, the sockets that QEMU's cards connect to."""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import socket
import sys
import termios
from collections import Counter, deque
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pytest_kvm.switch.echoes import Echoes
from pytest_kvm.switch.faults import Faults
from pytest_kvm.switch.filters import split
from pytest_kvm.switch.frames import PREFIX, frames_in, to_wire

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from pytest_kvm.switch.bridge import Bridge
    from pytest_kvm.switch.pcapng import CaptureFile


class Link:
    """A link: the cable of one guest's card to a segment.

    Args:
        name: Unique on its segment.
        segment: The segment it leads to.
        wake: Called with the link's port when frames are queued there.
    """

    def __init__(self, name: str, segment: Bridge, *, wake: Callable[[Port], None]) -> None:
        self.name = name
        self.segment = segment
        self.port: Port | None = None
        """The port of the card that the link is attached to; None between two tests, for instance."""
        self.moved = 0
        """The segment's count of moves when this link was last moved or unplugged."""
        self.reached = 0
        """Frames to the guest by which others can have changed it: all but discovery."""
        self.told = 0
        """Frames from the guest by which it can have changed others, counted once for each of them."""
        self.up = True
        """Whether it is plugged in."""
        self.uplink: Link | None = None
        """What leads on to a network of the host, if the segment is one."""
        self.guest: Link | None = None
        """Of an uplink: the guest's link that leads to it."""
        self.echoes = Echoes()
        """Of an uplink: what it will hand back."""
        self.out = Faults()
        """Faults of frames that come from the guest."""
        self.into = Faults()
        """Faults of frames that go to the guest."""
        self.sent = Tally()
        """Counters of frames that came from the guest."""
        self.got = Tally()
        """Counters of frames that went to the guest."""
        self.captures: list[CaptureFile] = []
        self._wake = wake

    @property
    def is_connected(self) -> bool:
        """Whether there is a card at its port."""
        return self.port is not None and self.port.connected

    @property
    def is_clear(self) -> bool:
        """Whether frames to the guest pass without faults and captures."""
        return self.into.is_clear and not self.captures

    @property
    def takes_runs(self) -> bool:
        """Whether :meth:`deliver_run` takes frames to the guest: no faults but filters, and no captures."""
        return self.into.are_filters_only and not self.captures

    def withdraw(self, is_unwanted: Callable[[Link], bool], *, reason: str) -> None:
        """Drop the frames of some senders that wait for the card.

        Args:
            is_unwanted: Says of a sender whether its frames are dropped.
            reason: What they are counted as.
        """
        if self.port is not None:
            withdrawn = self.port.withdraw(is_unwanted)
            self.got.frames -= len(withdrawn)
            self.got.bytes -= sum(withdrawn)
            if withdrawn:
                self.got.dropped[reason] += len(withdrawn)

    def deliver_run(self, data: memoryview, *, frames: int, sender: Link) -> None:
        """Deliver frames as :meth:`deliver` does, without those that a filter matches."""
        if not self.into.filters:
            self.deliver(data, frames=frames, sender=sender)
            return
        for run in split(bytes(data), [*self.into.filters.values()]):
            if run.is_matched:
                self.got.dropped["drop"] += run.frames
            else:
                self.deliver(memoryview(run.data), frames=run.frames, sender=sender)

    def deliver(self, data: memoryview, *, frames: int, sender: Link, are_discovery: bool = False) -> None:
        """Queue frames, each preceded by its length, for the card; count them, dropped ones too."""
        if not self.up or self.port is None or not self.port.connected:
            self.got.dropped["unplugged"] += frames
        elif not self.port.offer((data, sender)):
            self.got.dropped["guest too slow"] += frames
        else:
            self.got.frames += frames
            self.got.bytes += len(data) - 4 * frames
            if not are_discovery:
                self.reached += frames
                sender.told += frames
            self._wake(self.port)

    def hand_one(self, frame: bytes, *, sender: Link, is_discovery: bool) -> None:
        """Queue one frame for the card, and capture it unless it was dropped."""
        before = self.got.frames
        self.deliver(memoryview(to_wire(frame)), frames=1, sender=sender, are_discovery=is_discovery)
        if self.got.frames > before:
            for capture in self.captures:
                capture.take(frame, link=self.name, direction="in")


_CHUNK = 1 << 18
_QUEUE = 1 << 20
"""Bytes that may wait for a guest that does not take its frames."""
_VECTORS = 1024
"""Buffers in one call (``IOV_MAX`` of ``sendmsg(2)``)."""


Batch = tuple[memoryview, Link]
"""Frames, each preceded by its length, and their sender."""


class Port:
    """A unix socket that waits for one card, and then the connection of that card.

    Args:
        path: Where to listen; the mode of its folder decides who may connect.

    Raises:
        OSError: It cannot listen there.
    """

    prefix = PREFIX.size
    """Bytes in front of what the length of a frame counts."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        self._socket.bind(str(path))
        self._socket.listen(1)
        self._queue: deque[Batch] = deque()
        self._queued = 0
        """Bytes that wait to be sent."""
        self._begun = 0
        """Bytes of the queue's first batch that were sent."""
        self._rest = b""
        self._unwanted = 0
        """Bytes that are still to come of a frame that is dropped."""
        self.connected = False

    def fileno(self) -> int:
        """Return the descriptor to wait for: the listener's, or the connection's once there is one."""
        return self._socket.fileno()

    def accept(self) -> None:
        """Accept the card's connection, and stop listening for others."""
        connection, _ = self._socket.accept()
        connection.settimeout(0)
        self._socket.close()
        self._socket = connection
        self.connected = True
        with contextlib.suppress(FileNotFoundError):
            self._path.unlink()

    def read(self) -> bytes | None:
        """Return all bytes since the last whole frame; b"" if QEMU has ended, None if no bytes have come."""
        try:
            data = self._socket.recv(_CHUNK)
        except BlockingIOError:
            return None
        except ConnectionError:
            data = b""
        if not data:
            return b""
        if self._unwanted:
            dropped = min(self._unwanted, len(data))
            self._unwanted -= dropped
            data = data[dropped:]
            if not data:
                return None
        return self._rest + data if self._rest else data

    def keep(self, rest: bytes) -> None:
        """Keep the beginning of a frame until the rest of the frame comes."""
        self._rest = rest

    def drop_rest(self) -> None:
        """Drop the frame whose beginning is kept, also what comes of it later."""
        if len(self._rest) >= PREFIX.size:
            (length,) = PREFIX.unpack_from(self._rest)
            self._unwanted = self.prefix + length - len(self._rest)
            self._rest = b""

    @property
    def is_drained(self) -> bool:
        """Whether the card has taken all that was sent to it (``SIOCOUTQ`` of ``unix(7)`` and ``tcp(7)``)."""
        if not self.connected:
            return True
        unread = fcntl.ioctl(self._socket, termios.TIOCOUTQ, bytes(4))
        return not self._queued and not int.from_bytes(unread, sys.byteorder)

    def offer(self, batch: Batch) -> bool:
        """Queue whole frames for the card; say whether they fit."""
        size = len(batch[0])
        if self._queued + size > _QUEUE:
            return False
        self._queue.append(batch)
        self._queued += size
        return True

    def frames(self, queued: memoryview) -> Iterator[tuple[int, int]]:
        """Yield the begin and the end of each queued frame, without what is in front of it."""
        return frames_in(queued)

    def withdraw(self, is_unwanted: Callable[[Link], bool]) -> list[int]:
        """Take frames of some senders out of the queue, but one that is sent in part; return their sizes."""
        withdrawn: list[int] = []
        kept: deque[Batch] = deque()
        begun, self._begun = self._begun, 0
        for index, (data, sender) in enumerate(self._queue):
            sent = begun if index == 0 else 0
            if is_unwanted(sender):
                ends = [0, *(end for _, end in self.frames(data))]
                keep = next(end for end in ends if end >= sent)
                withdrawn += [end - begin for begin, end in self.frames(data) if begin > keep]
            else:
                keep = len(data)
            if keep > sent:
                kept.append((data[:keep], sender))
                self._begun += sent
        self._queue = kept
        self._queued = sum(len(data) for data, _ in kept) - self._begun
        return withdrawn

    def flush(self) -> bool:
        """Send as much of the queue as the card takes now; say whether the queue is empty."""
        queue = self._queue
        while queue:
            pieces = [data for data, _ in itertools.islice(queue, _VECTORS)]
            pieces[0] = pieces[0][self._begun :]
            try:
                sent = self._socket.sendmsg(pieces)
            except BlockingIOError:
                return False
            except ConnectionError:
                self._clear()  # QEMU has ended; the caller learns that from read()
                return True
            self._queued -= sent
            sent += self._begun
            while queue and sent >= len(queue[0][0]):
                sent -= len(queue.popleft()[0])
            self._begun = sent
        return True

    def close(self) -> None:
        """Close the socket, and remove its file if no card has connected."""
        self._socket.close()
        self._clear()
        if not self.connected:
            with contextlib.suppress(FileNotFoundError):
                self._path.unlink()
        self.connected = False

    def _clear(self) -> None:
        self._queue.clear()
        self._queued = self._begun = 0


Direction = Literal["out", "in"]
"""Seen from the guest: ``out`` of the guest or ``in``."""


@dataclass
class Tally:
    """Counters of one direction of a link."""

    frames: int = 0
    bytes: int = 0
    """Bytes of these frames, Ethernet headers included."""
    dropped: Counter[str] = field(default_factory=Counter[str])
    """Frames that did not pass, by reason."""
    delayed: dict[int, Callable[[], None]] = field(default_factory=dict[int, "Callable[[], None]"])
    """By number, what hands over each frame that a fault has delayed."""
    _numbers: Iterator[int] = field(default_factory=itertools.count)

    def delay(self, hand_over: Callable[[], None]) -> Callable[[], None]:
        """Keep a frame; return what ends its delay, unless the frame is lost by then."""
        number = next(self._numbers)
        self.delayed[number] = hand_over
        return partial(self._end_delay, number)

    def lose_delayed(self, reason: str) -> None:
        """Drop the frames that are delayed."""
        if self.delayed:
            self.dropped[reason] += len(self.delayed)
            self.delayed.clear()

    def _end_delay(self, number: int) -> None:
        hand_over = self.delayed.pop(number, None)
        if hand_over is not None:
            hand_over()

    def as_json(self, more: Tally | None = None) -> dict[str, Any]:
        """Return the counters as JSON values, with the frames that another tally has as dropped."""
        dropped = self.dropped if more is None else self.dropped + more.dropped
        return {"frames": self.frames, "bytes": self.bytes, "dropped": dict(dropped)}
