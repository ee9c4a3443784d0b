"""What a running command writes: kept in full, told to the log line by line."""

from __future__ import annotations

import logging
import re
import threading
import time

from pytest_kvm.handles.commandline import GROUP_MARK
from pytest_kvm.handles.result import shown

OUTPUT_LIMIT = 256 * 1024**2
"""Bytes kept of one stream; a command that writes more is ended."""

_LINE_BYTES = 500
_LINES_PER_SECOND = 200
_MARK = re.compile(rb"^%s (\d{1,10})\r?\n" % GROUP_MARK.encode(), re.MULTILINE)
_MARK_WITHIN = 64 * 1024
"""Bytes of stderr in which the mark must come: a login's greeting is shorter."""


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
        self._log.info("%s%s%s", self._prefix, shown(line[:_LINE_BYTES].removesuffix(b"\r")), more)

    def _tell_skipped(self) -> None:
        if self._skipped:
            self._log.info("%s… %d lines are not logged", self._prefix, self._skipped)
            self._skipped = 0


class Stream:
    """One of a command's two output streams; fed by one thread, read by any."""

    def __init__(self, changed: threading.Condition, log: LineLog, *, limit: int) -> None:
        self._changed = changed
        self._log = log
        self._limit = limit
        self._data = bytearray()
        self.received = 0
        """Bytes that came, kept or not."""
        self.finished = False
        """Nothing more will come."""

    def feed(self, data: bytes) -> None:
        """Take the stream's next bytes."""
        with self._changed:
            self._data += data[: max(0, self._limit - len(self._data))]
            self.received += len(data)
            self._changed.notify_all()
        self._log.feed(data)

    def finish(self) -> None:
        """Say that nothing more will come."""
        self._log.finish()
        with self._changed:
            self.finished = True
            self._changed.notify_all()

    @property
    def overflowed(self) -> bool:
        """Say whether more came than is kept."""
        return self.received > self._limit

    def value(self) -> bytes:
        """Return what has come until now."""
        with self._changed:
            return bytes(self._data)

    def line_at(self, position: int) -> bytes | None:
        """Return the line that starts at a byte, with its end; None if it is not complete yet.

        What follows the last line end counts as a line once the stream has finished.
        """
        with self._changed:
            end = self._data.find(b"\n", position) + 1
            if end:
                return bytes(self._data[position:end])
            return bytes(self._data[position:]) if self.finished else None


class GroupFinder:
    """Take the line out of stderr that tells the command's process group.

    The login shell may print something before it, so it is looked for, not expected first.
    """

    def __init__(self) -> None:
        self._held = b""
        self._done = False
        self.group: int | None = None
        """The process group, once it has been told."""

    def feed(self, data: bytes) -> bytes:
        """Take the next bytes and return those that are the command's own."""
        if self._done:
            return data
        self._held += data
        found = _MARK.search(self._held)
        if found:
            self.group = int(found[1])
            self._held = self._held[: found.start()] + self._held[found.end() :]
        elif len(self._held) <= _MARK_WITHIN:
            return b""
        return self.finish()

    def finish(self) -> bytes:
        """Return what was held back."""
        self._done = True
        held, self._held = self._held, b""
        return held
