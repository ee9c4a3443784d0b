"""The interface of an SSH channel with one command on it, without importing paramiko."""

from __future__ import annotations

import threading
from typing import Protocol

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
