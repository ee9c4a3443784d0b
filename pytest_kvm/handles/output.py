"""The reading side of a command's channel: both streams at once, to the end."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

from pytest_kvm.handles.channel import Channel
from pytest_kvm.handles.streams import LineLog, Stream

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
