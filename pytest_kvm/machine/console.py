"""A guest's serial console: everything it printed, and a line to type on.

QEMU itself writes the log, from the first byte of the firmware on (libvirt's
``<log file=…>`` below ``<serial type='unix'>``, formatdomain.html
"Consoles, serial, parallel & channel devices"), so nothing is lost while
nobody is connected to the socket.
"""

from __future__ import annotations

import codecs
import contextlib
import fcntl
import re
import socket
import struct
import termios
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from pytest_kvm.errors import GuestGone
from pytest_kvm.plaintext import plain
from pytest_kvm.waiting import Clock, NotYet, wait_until

_PIECE = 64 * 1024
_SEND_TIMEOUT = 10.0
_OPEN_END = re.compile(r"(?:\x1b(?:\[[ -?]{0,80}|[\]PX^_][^\x07\x1b]{0,4096}\x1b?|[ -/]{0,16})?|\r+)\Z")
"""An escape sequence or a line end at the end of a piece, which the next piece may continue."""
TEXT_LIMIT = 1024 * 1024
"""Bytes of the log that :meth:`Console.text` returns at most."""


class Console:
    """The serial console of one guest.

    Args:
        log: File that QEMU appends every byte to; may not exist yet.
        socket_path: The serial port's unix socket; None if it has none.
        ended: Says why the domain ended, empty while it lives.
        clock: Measures how long waits take.
    """

    def __init__(
        self,
        log: Path,
        socket_path: Path | None,
        *,
        ended: Callable[[], str] = str,
        clock: Clock = time.monotonic,
    ) -> None:
        self.log = log
        self._socket_path = socket_path
        self._ended = ended
        self._clock = clock
        self.beginning = self.offset()
        """How much of the log is of before: a clone's begins with that of its template."""

    def __repr__(self) -> str:
        return f"<Console {self.log} {self.offset()} bytes>"

    def offset(self) -> int:
        """Return how many bytes the guest has printed so far; a later wait can start from there."""
        try:
            return self.log.stat().st_size
        except FileNotFoundError:
            return 0

    def text(self, *, since: int = 0, limit: int = TEXT_LIMIT) -> str:
        """Return what was printed since an offset, its last ``limit`` bytes at most."""
        end = self.offset()
        return plain(self.read(max(since, end - limit), limit).decode("utf-8", "replace"))

    def tail(self, lines: int = 40) -> str:
        """Return the last lines that are not blank."""
        written = [line.rstrip() for line in self.text(limit=256 * max(lines, 16)).splitlines()]
        return "\n".join([line for line in written if line][-lines:])

    def follow(self, *, since: int = 0) -> ConsoleReader:
        """Return a reader of what is printed from an offset on."""
        return ConsoleReader(self, start=since)

    def wait(
        self, pattern: str | re.Pattern[str], *, timeout: float, since: int | None = None
    ) -> re.Match[str]:
        """Wait until the guest prints something that matches.

        Args:
            pattern: Searched with :data:`re.MULTILINE` in clean text; a match
                may span lines but not more than 64 KiB.
            timeout: Seconds.
            since: Offset to search from; None: from now on.

        Raises:
            WaitTimeout: Nothing matched; carries the console's tail.
            GuestGone: The domain ended first.
        """
        regex = re.compile(pattern, re.MULTILINE)
        reader = self.follow(since=self.offset() if since is None else since)

        def find_match() -> re.Match[str]:
            ended = self._ended()  # asked before the last look, so that the guest's last output is searched
            for window in reader.windows():
                if match := regex.search(window):
                    return match
            if ended:
                raise GuestGone(
                    f"the guest ended while /{regex.pattern}/ was awaited on its console: {ended}",
                    details=self.tail(),
                )
            raise NotYet(reader.last_line)

        return wait_until(
            find_match,
            describe=f"/{regex.pattern}/ on the console",
            timeout=timeout,
            every=0.1,
            details=self.tail,
            clock=self._clock,
        )

    def send(self, text: str) -> None:
        """Type ``text`` on the serial line; end it with a newline to press Enter.

        Raises:
            GuestGone: The serial line is not there (any more).
            WaitTimeout: The guest does not take what is typed.
        """
        if self._socket_path is None:
            raise GuestGone("this console has no socket to type on")
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as line:
            try:
                line.connect(str(self._socket_path))
                line.settimeout(0)
                self._type(line, text.encode())
            except OSError as error:
                raise GuestGone(
                    f"cannot type on the console {self._socket_path}: {error}", details=self.tail()
                ) from error

    def _type(self, line: socket.socket, data: bytes) -> None:
        """Hand everything to the UART, which takes 16 bytes at a time."""
        left = memoryview(data)

        def check_taken() -> None:
            nonlocal left
            with contextlib.suppress(BlockingIOError):
                # Discard what the guest prints meanwhile: it is in the log, and
                # unread it would fill the socket and stall the guest.
                while line.recv(_PIECE):
                    pass
            with contextlib.suppress(BlockingIOError):
                left = left[line.send(left) :] if left else left
            # SIOCOUTQ: what QEMU has not read yet. Closing would discard it.
            queued = struct.unpack("i", fcntl.ioctl(line, termios.TIOCOUTQ, bytes(4)))[0]
            if left or queued:
                raise NotYet(f"{len(left) + queued} of {len(data)} bytes not taken yet")

        wait_until(
            check_taken,
            describe="the guest to read its console",
            timeout=_SEND_TIMEOUT,
            every=0.02,
            clock=self._clock,
        )

    def read(self, offset: int, limit: int) -> bytes:
        """Return up to ``limit`` bytes of the log, as they are, from an offset on."""
        try:
            with self.log.open("rb") as log:
                log.seek(offset)
                return log.read(limit)
        except FileNotFoundError:
            return b""


class ConsoleReader:
    """Reads a console's log piece by piece and never holds more than a window."""

    def __init__(self, console: Console, *, start: int) -> None:
        self._console = console
        self._offset = start
        self._decoder = PlainDecoder()
        self._window = ""

    @property
    def last_line(self) -> str:
        """The last line that is not blank, cut to 200 characters."""
        return self._window.rstrip().rpartition("\n")[2][-200:]

    def windows(self) -> Iterator[str]:
        """Yield, for each new piece, the piece and up to 64 KiB before it."""
        if self._offset > self._console.offset():
            self._offset = 0  # virtlogd(8) starts a new file at 2 MiB
        while data := self._console.read(self._offset, _PIECE):
            self._offset += len(data)
            self._window = self._window[-_PIECE:] + self._decoder.feed(data)
            yield self._window


class PlainDecoder:
    """Decode and clean a stream that arrives in arbitrary pieces.

    A sequence cut in two by a piece's end is held back until the rest comes.
    """

    def __init__(self) -> None:
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")
        self._held = ""

    def feed(self, data: bytes) -> str:
        """Return the clean text that ``data`` completes."""
        text = self._held + self._utf8.decode(data)
        tail = _OPEN_END.search(text, max(0, len(text) - 5000))
        self._held = text[tail.start() :] if tail else ""
        return plain(text[: len(text) - len(self._held)])
