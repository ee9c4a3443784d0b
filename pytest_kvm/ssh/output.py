"""Reads what a running command writes, both streams at once, and sends it its input.

Output is kept up to a limit and logged by lines. The command is a :class:`Channel`,
so that this module needs no paramiko.
"""

from __future__ import annotations

import logging
import re
import threading
import time
from collections.abc import Callable
from typing import Protocol

from pytest_kvm.results import for_terminal
from pytest_kvm.ssh.command_line import GROUP_MARK

OUTPUT_LIMIT = 256 * 1024**2
"""Bytes that are kept of one stream; a command that writes more is killed."""

_LINE_BYTES = 500
_LINES_PER_SECOND = 200
START_UP_LIMIT = 1024**2
"""Bytes that the login shell's start-up files may print before a command begins."""
_MARK = re.compile(rb"%s (\d{1,10})\r?\n" % GROUP_MARK.encode())
_READ_BYTES = 16 * 1024**2
_QUIET = 0.2
"""Seconds without output after which sshd is asked whether more will come."""
_BACKLOG = 16 * 1024**2
"""Bytes; more than can be in pipes, SSH's window and QEMU's buffers when a command ends."""


class Output:
    """Everything a command writes, read by a thread of its own.

    Both streams share the channel's flow-control window (RFC 4254 §5.2): if only
    one of them is read, the other can fill the window and stop both for ever.
    """

    def __init__(self, channel: Channel, *, name: str, log: logging.Logger, limit: int) -> None:
        self._channel = channel
        self.changed = threading.Condition()
        """Notified whenever output came or a stream ended."""
        self.out = Stream(self.changed, LineLog(log, f"[{name}] out: "), limit=limit)
        self.err = Stream(self.changed, LineLog(log, f"[{name}] err: "), limit=limit)
        threading.Thread(target=self._read, name=f"{log.name}: {name}", daemon=True).start()

    @property
    def group(self) -> int | None:
        """The command's process group in the guest; None until the mark has come."""
        return self.err.start.group

    @property
    def begun(self) -> bool:
        """Whether the shell has begun the command."""
        return self.err.start.happened

    @property
    def ended(self) -> bool:
        """Whether both streams have ended."""
        return self.out.finished and self.err.finished

    @property
    def received(self) -> int:
        """Bytes that came on both streams, kept or not."""
        return self.out.received + self.err.received

    @property
    def overflowed(self) -> bool:
        """Whether more came than is kept."""
        return self.out.overflowed or self.err.overflowed

    def await_change(self, condition: Callable[[], bool], seconds: float) -> bool:
        """Return once ``condition`` holds or ``seconds`` have passed."""
        with self.changed:
            return self.changed.wait_for(condition, seconds)

    def drain(self, round_trip: Callable[[], object]) -> None:
        """Read the rest of a command that has exited, then close the channel.

        The output ends when the command's side closes it. A child process that the
        command left behind may hold it open for ever, so reading also ends when
        sshd has nothing more to send after two round trips. One is not enough: its
        answer may arrive before output that was waiting for the window.
        """
        begun = self.received
        while not self.await_change(lambda: self.ended, _QUIET) and self.received - begun < _BACKLOG:
            seen = self.received
            round_trip()
            round_trip()
            # The answers may have come before the reading thread has run.
            if not self._grows(seen, _QUIET):
                break
        self._channel.close()
        self.out.finish()
        self.err.finish()

    def _grows(self, seen: int, seconds: float) -> bool:
        return self.await_change(lambda: self.ended or self.received != seen, seconds)

    def _read(self) -> None:
        arrival = _Arrival()
        self._channel.in_buffer.set_event(arrival)
        self._channel.in_stderr_buffer.set_event(arrival)
        try:
            while not self._read_all(arrival):
                arrival.wait()
        except (OSError, EOFError):
            # The connection broke while the window was enlarged: this ends the streams too.
            return
        finally:
            self.out.finish()
            self.err.finish()

    def _read_all(self, arrival: _Arrival) -> bool:
        """Take what both streams have; say whether they have ended."""
        # Before looking: bytes that come meanwhile set the event again.
        arrival.forget()
        has_ended = self._channel.eof_received or self._channel.closed
        while (has_out := self._channel.recv_ready()) | (has_err := self._channel.recv_stderr_ready()):
            if has_out:
                self.out.feed(self._channel.recv(_READ_BYTES))
            if has_err:
                self.err.feed(self._channel.recv_stderr(_READ_BYTES))
        return bool(has_ended)


class _Arrival(threading.Event):
    """Set when bytes come on either of two streams, and when they end.

    A buffer clears the event when it was read to its end. The other buffer may
    hold bytes then, so its word does not count: the reading thread resets the
    event before it looks at both.
    """

    def clear(self) -> None:
        """Ignore what one buffer says."""

    def forget(self) -> None:
        """Reset the event."""
        super().clear()


class LineLog:
    """Writes a stream to a logger: whole lines, with limits for their length and their rate."""

    def __init__(self, log: logging.Logger, prefix: str) -> None:
        self._log = log
        self._prefix = prefix
        self._rest = b""
        self._second = 0
        self._told = 0
        self._skipped = 0

    def feed(self, data: bytes) -> None:
        """Take the next bytes of the stream."""
        if not self._log.isEnabledFor(logging.INFO):
            return
        *lines, rest = (self._rest + data).split(b"\n")
        # One byte more than is shown: _tell() sees by it that the line goes on.
        self._rest = rest[: _LINE_BYTES + 1]
        for at, line in enumerate(lines):
            if not self._may_tell():
                self._skipped += len(lines) - at
                break
            self._tell(line)

    def finish(self) -> None:
        """Log what is left at the stream's end."""
        if self._rest:
            self._tell(self._rest)
            self._rest = b""
        self._tell_skipped()

    def _may_tell(self) -> bool:
        now = int(time.monotonic())
        if now != self._second:
            self._second, self._told = now, 0
            self._tell_skipped()
        self._told += 1
        return self._told <= _LINES_PER_SECOND

    def _tell(self, line: bytes) -> None:
        more = "…" if len(line) > _LINE_BYTES else ""
        self._log.info("%s%s%s", self._prefix, for_terminal(line[:_LINE_BYTES].removesuffix(b"\r")), more)

    def _tell_skipped(self) -> None:
        if self._skipped:
            self._log.info("%s… %d lines are not logged", self._prefix, self._skipped)
            self._skipped = 0


class CommandStart:
    """Drops what the login shell's start-up files print before a command begins; one object per stream.

    The first line that a command's script prints on each stream is the mark of
    :func:`~pytest_kvm.ssh.command_line.command_line`.
    """

    def __init__(self) -> None:
        self.before = b""
        """Bytes that came before the mark, until the mark comes."""
        self.group: int | None = None
        """The number in the mark: on stderr the command's process group."""
        self.overrun = False
        """Whether more than :data:`START_UP_LIMIT` bytes came without the mark."""
        self._ended = False

    @property
    def happened(self) -> bool:
        """Whether the mark has come, or so much output without it that it is no longer looked for."""
        return self.group is not None or self.overrun

    def feed(self, data: bytes) -> bytes:
        """Take the next bytes of the stream and return those that are the command's own."""
        if self.group is not None or self._ended:
            return data
        self.before += data
        if found := _MARK.search(self.before):
            self.group = int(found[1])
            own, self.before = self.before[found.end() :], b""
            return own
        self.overrun = len(self.before) > START_UP_LIMIT
        return self.finish() if self.overrun else b""

    def finish(self) -> bytes:
        """Return what came if the mark never came: the reason why the command was not run."""
        self._ended = True
        held, self.before = self.before, b""
        return held


class Stream:
    """One of a command's two output streams; the reading thread feeds it, any thread may read it."""

    def __init__(self, changed: threading.Condition, log: LineLog, *, limit: int) -> None:
        self._changed = changed
        self._log = log
        self._limit = limit
        self._data = bytearray()
        self.start = CommandStart()
        self.received = 0
        """Number of bytes that came, kept or not."""
        self.overflowed = False
        """Whether the command wrote more than is kept."""
        self.finished = False
        """Whether the stream has ended."""

    def feed(self, data: bytes) -> None:
        """Take the next bytes of the stream."""
        with self._changed:
            self.received += len(data)
            own = self._keep(self.start.feed(data))
            self._changed.notify_all()
        self._log.feed(own)

    def finish(self) -> None:
        """Note that the stream has ended."""
        with self._changed:
            own = self._keep(self.start.finish())
        self._log.feed(own)
        self._log.finish()
        with self._changed:
            self.finished = True
            self._changed.notify_all()

    def value(self) -> bytes:
        """Return the command's output so far; before the command begins, that of its login shell."""
        with self._changed:
            return bytes(self._data) or self.start.before

    def line_at(self, position: int) -> bytes | None:
        """Return the line that starts at a byte, with its line end; None if the line is not complete yet.

        Once the stream has ended, the bytes after the last line end count as a line.
        """
        with self._changed:
            end = self._data.find(b"\n", position) + 1
            if end:
                return bytes(self._data[position:end])
            return bytes(self._data[position:]) if self.finished else None

    def _keep(self, data: bytes) -> bytes:
        free = self._limit - len(self._data)
        self._data += data[:free]
        self.overflowed = self.overflowed or len(data) > free
        return data


PIECE = 32 * 1024 - 64
"""Bytes that paramiko puts into one packet: OpenSSH takes 32 KiB (``CHAN_SES_PACKET_DEFAULT``)."""


class StreamBuffer(Protocol):
    """What has come of one stream and was not read yet."""

    def set_event(self, event: threading.Event, /) -> None:
        """Have an event set when something comes and when the stream ends, cleared when all was read."""
        ...


class Channel(Protocol):
    """An SSH channel with one command on it; the names are paramiko's."""

    eof_received: int
    """True once the command's output has ended: both streams do at once (RFC 4254 §5.3)."""
    closed: bool
    status_event: threading.Event
    """Set when the exit status is there, or will never come."""
    exit_status: int
    """Exit status of the command; -1 until it is there."""

    @property
    def in_buffer(self) -> StreamBuffer:
        """What has come of stdout."""
        ...

    @property
    def in_stderr_buffer(self) -> StreamBuffer:
        """What has come of stderr."""
        ...

    def exec_command(self, command: str, /) -> None:
        """Have the login shell run a line."""
        ...

    def settimeout(self, timeout: float | None, /) -> None:
        """Set the seconds that ``recv`` and ``sendall`` may take without progress."""
        ...

    def recv_ready(self) -> bool:
        """Say whether stdout has something that :meth:`recv` would return at once."""
        ...

    def recv_stderr_ready(self) -> bool:
        """Do the same for stderr."""
        ...

    def recv(self, nbytes: int, /) -> bytes:
        """Return bytes of the command's stdout; block until there are some. Return b"" at the end."""
        ...

    def recv_stderr(self, nbytes: int, /) -> bytes:
        """Return bytes of the command's stderr, as :meth:`recv` does for stdout."""
        ...

    def sendall(self, s: bytes, /) -> None:
        """Write to the command's standard input, blocking while the window is full."""
        ...

    def shutdown_write(self) -> None:
        """Close the command's standard input."""
        ...

    def close(self) -> None:
        """Close the channel; every blocked call returns or raises."""
        ...


def send(channel: Channel, data: bytes) -> None:
    """Write to a command's standard input, a packet at a time.

    If it got all data in one call, paramiko would copy all that is left for each packet.

    Raises:
        OSError: The command has ended, or made no progress within the channel's time-out.
        EOFError: The connection was lost.
    """
    for start in range(0, len(data), PIECE):
        channel.sendall(data[start : start + PIECE])
