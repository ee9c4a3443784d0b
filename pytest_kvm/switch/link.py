"""A guest's cable, what passed it, and the socket that QEMU's card connects to."""

from __future__ import annotations

import contextlib
import socket
from collections import Counter, deque
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pytest_kvm.switch.faults import Faults
from pytest_kvm.switch.frames import to_wire

if TYPE_CHECKING:
    from collections.abc import Callable

    from pytest_kvm.switch.pcap import Capture
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
        self.out = Faults()
        """Faults of what comes out of the guest."""
        self.into = Faults()
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
        self.hand(memoryview(to_wire(frame)), frames=1)
        if self.got.frames > before:
            for capture in self.captures:
                capture.take(frame)


_CHUNK = 1 << 18
_QUEUE = 1 << 20
"""Bytes that may wait for a guest that does not take its frames."""
_VECTORS = 1024
"""Buffers in one call (``IOV_MAX`` of ``sendmsg(2)``)."""


class Port:
    """A listening unix socket, and the one connection that it takes.

    Args:
        path: Where to listen; the folder decides who may connect.

    Raises:
        OSError: It cannot listen there.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        self._socket.bind(str(path))
        self._socket.listen(1)
        self._queue: deque[memoryview] = deque()
        self._queued = 0
        self._rest = b""
        self.connected = False

    def fileno(self) -> int:
        """Return the descriptor to wait for: the listener's, then the connection's."""
        return self._socket.fileno()

    def accept(self) -> None:
        """Take the connection; there will be no other."""
        connection, _ = self._socket.accept()
        connection.settimeout(0)
        self._socket.close()
        self._socket = connection
        self.connected = True
        with contextlib.suppress(FileNotFoundError):
            self._path.unlink()

    def read(self) -> bytes | None:
        """Return what has come since the last whole frame: "" if QEMU has ended, None if nothing has."""
        try:
            data = self._socket.recv(_CHUNK)
        except BlockingIOError:
            return None
        except ConnectionError:
            data = b""
        if not data:
            return b""
        return self._rest + data if self._rest else data

    def keep(self, rest: bytes) -> None:
        """Put the beginning of a frame back until the rest of it comes."""
        self._rest = rest

    def offer(self, data: memoryview) -> bool:
        """Queue whole frames for the card; say whether they fit."""
        if self._queued + len(data) > _QUEUE:
            return False
        self._queue.append(data)
        self._queued += len(data)
        return True

    def flush(self) -> bool:
        """Send what the card takes now; say whether that was all."""
        queue = self._queue
        while queue:
            try:
                sent = self._socket.sendmsg(islice(queue, _VECTORS))
            except BlockingIOError:
                return False
            except ConnectionError:
                queue.clear()  # QEMU has ended: reading says so, too
                self._queued = 0
                return True
            self._queued -= sent
            while sent:
                first = queue.popleft()
                if len(first) > sent:
                    queue.appendleft(first[sent:])
                    break
                sent -= len(first)
        return True

    def close(self) -> None:
        """Hang up, and remove the socket's file if nobody came."""
        self._socket.close()
        self._queue.clear()
        self._queued = 0
        if not self.connected:
            with contextlib.suppress(FileNotFoundError):
                self._path.unlink()
        self.connected = False


Direction = Literal["out", "in"]
"""As the guest sees it: out of it, into it."""


@dataclass
class Tally:
    """One direction of a link."""

    frames: int = 0
    bytes: int = 0
    """Of frames, Ethernet header included."""
    dropped: Counter[str] = field(default_factory=Counter[str])
    """Frames that did not pass, by reason."""

    def as_json(self) -> dict[str, Any]:
        """Return the numbers."""
        return {"frames": self.frames, "bytes": self.bytes, "dropped": dict(self.dropped)}
