"""What a running command writes: both streams read at once, kept in full, logged line by line."""

from __future__ import annotations

import logging
import re
import threading
import time
from collections.abc import Callable

from pytest_kvm.results import for_terminal
from pytest_kvm.ssh.channel import Channel
from pytest_kvm.ssh.command_line import GROUP_MARK

OUTPUT_LIMIT = 256 * 1024**2
"""Bytes kept of one stream; a command that writes more is ended."""

_LINE_BYTES = 500
_LINES_PER_SECOND = 200
START_UP_LIMIT = 1024**2
"""Bytes that the login shell's start-up files may print before a command begins."""
_MARK = re.compile(rb"%s (\d{1,10})\r?\n" % GROUP_MARK.encode())
_READ_BYTES = 16 * 1024**2
_QUIET = 0.2
"""Seconds without output before sshd is asked whether more will come."""
_BACKLOG = 16 * 1024**2
"""More than can be under way when a command ends: its pipes, SSH's window, QEMU's buffers."""


class Output:
    """Everything a command writes, read by one thread for each stream.

    Both streams share the channel's flow-control window (RFC 4254 §5.2):
    whoever reads only one of them stops the other for ever.
    """

    def __init__(self, channel: Channel, *, name: str, log: logging.Logger, limit: int) -> None:
        self._channel = channel
        self.changed = threading.Condition()
        """Notified whenever something came or a stream ended."""
        self.out = Stream(self.changed, LineLog(log, f"[{name}] out: "), limit=limit)
        self.err = Stream(self.changed, LineLog(log, f"[{name}] err: "), limit=limit)
        for work in (self._read_out, self._read_err):
            threading.Thread(target=work, name=f"{log.name}: {name}", daemon=True).start()

    @property
    def group(self) -> int | None:
        """The command's process group in the guest, once it was told."""
        return self.err.start.group

    @property
    def begun(self) -> bool:
        """Say whether the shell has come as far as the command."""
        return self.err.start.happened

    @property
    def ended(self) -> bool:
        """Say whether both streams are closed."""
        return self.out.finished and self.err.finished

    @property
    def received(self) -> int:
        """Bytes of both streams that came, kept or not."""
        return self.out.received + self.err.received

    @property
    def overflowed(self) -> bool:
        """Say whether more came than is kept."""
        return self.out.overflowed or self.err.overflowed

    def await_change(self, condition: Callable[[], bool], seconds: float) -> bool:
        """Return once ``condition`` holds or ``seconds`` have passed."""
        with self.changed:
            return self.changed.wait_for(condition, seconds)

    def drain(self, round_trip: Callable[[], object]) -> None:
        """Read the rest of a command that has exited, then close the channel.

        Its output ends when it is closed. A child that was left behind may
        hold it open for ever, so it also ends when sshd, asked twice, had
        nothing more to send: the first question may overtake what was waiting
        for the window, the second cannot.
        """
        begun = self.received
        while not self.await_change(lambda: self.ended, _QUIET) and self.received - begun < _BACKLOG:
            seen = self.received
            round_trip()
            round_trip()
            # The answers may be here before the readers have woken up.
            if not self._grows(seen, _QUIET):
                break
        self._channel.close()
        self.out.finish()
        self.err.finish()

    def _grows(self, seen: int, seconds: float) -> bool:
        return self.await_change(lambda: self.ended or self.received != seen, seconds)

    def _read_out(self) -> None:
        self._read(self._channel.recv, self.out.feed)
        self.out.finish()

    def _read_err(self) -> None:
        self._read(self._channel.recv_stderr, self.err.feed)
        self.err.finish()

    @staticmethod
    def _read(receive: Callable[[int], bytes], feed: Callable[[bytes], None]) -> None:
        try:
            while data := receive(_READ_BYTES):
                feed(data)
        except (OSError, EOFError):
            # The connection broke while the window was given back: the end, too.
            return


class LineLog:
    """Tell a stream to a logger: whole lines, bounded in length and in rate."""

    def __init__(self, log: logging.Logger, prefix: str) -> None:
        self._log = log
        self._prefix = prefix
        self._rest = b""
        self._second = 0
        self._told = 0
        self._skipped = 0

    def feed(self, data: bytes) -> None:
        """Take the stream's next bytes."""
        if not self._log.isEnabledFor(logging.INFO):
            return
        *lines, rest = (self._rest + data).split(b"\n")
        # One byte more than is shown says that something is missing.
        self._rest = rest[: _LINE_BYTES + 1]
        for at, line in enumerate(lines):
            if not self._may_tell():
                self._skipped += len(lines) - at
                break
            self._tell(line)

    def finish(self) -> None:
        """Tell what is left."""
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
    """Drop what the login shell's start-up files print before a command begins.

    The first line that a command's script prints, on either stream, is the mark
    of :func:`~pytest_kvm.ssh.command_line.command_line`.
    """

    def __init__(self) -> None:
        self.before = b""
        """What has come while the mark has not."""
        self.group: int | None = None
        """The number beside the mark: on stderr the command's process group."""
        self.overrun = False
        """More than :data:`START_UP_LIMIT` came without the mark."""
        self._ended = False

    @property
    def happened(self) -> bool:
        """Say whether the shell came as far as the command, or printed too much to tell."""
        return self.group is not None or self.overrun

    def feed(self, data: bytes) -> bytes:
        """Take a stream's next bytes and return those that are the command's own."""
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
        """Return what came, if the mark never did: why the command was not run."""
        self._ended = True
        held, self.before = self.before, b""
        return held


class Stream:
    """One of a command's two output streams; fed by one thread, read by any."""

    def __init__(self, changed: threading.Condition, log: LineLog, *, limit: int) -> None:
        self._changed = changed
        self._log = log
        self._limit = limit
        self._data = bytearray()
        self.start = CommandStart()
        self.received = 0
        """Bytes that came, kept or not."""
        self.overflowed = False
        """The command wrote more than is kept."""
        self.finished = False
        """Nothing more will come."""

    def feed(self, data: bytes) -> None:
        """Take the stream's next bytes."""
        with self._changed:
            self.received += len(data)
            own = self._keep(self.start.feed(data))
            self._changed.notify_all()
        self._log.feed(own)

    def finish(self) -> None:
        """Say that nothing more will come."""
        with self._changed:
            own = self._keep(self.start.finish())
        self._log.feed(own)
        self._log.finish()
        with self._changed:
            self.finished = True
            self._changed.notify_all()

    def value(self) -> bytes:
        """Return what has come until now; while the command has not begun, from its shell."""
        with self._changed:
            return bytes(self._data) or self.start.before

    def line_at(self, position: int) -> bytes | None:
        """Return the line that starts at a byte, with its end; None if it is not complete yet.

        What follows the last line end counts as a line once the stream has finished.
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
