"""What a command's connection offers, free of the library behind it."""

from __future__ import annotations

import threading
from typing import Protocol

_PIECE = 32 * 1024 - 64
"""What paramiko puts into one packet: OpenSSH takes 32 KiB (``CHAN_SES_PACKET_DEFAULT``)."""


class Channel(Protocol):
    """An SSH channel with one command on it, as paramiko names its parts."""

    status_event: threading.Event
    """Set when the exit status is there, or will never come."""
    exit_status: int
    """-1 until it is there."""

    def exec_command(self, command: str, /) -> None:
        """Have the login shell run a line."""
        ...

    def settimeout(self, timeout: float | None, /) -> None:
        """Give ``recv`` and ``sendall`` at most so many seconds without progress."""
        ...

    def recv(self, nbytes: int, /) -> bytes:
        """Return what stdout has, blocking until it has something; b"" at its end."""
        ...

    def recv_stderr(self, nbytes: int, /) -> bytes:
        """Do the same for stderr."""
        ...

    def sendall(self, s: bytes, /) -> None:
        """Write to the command's standard input, blocking while the window is full."""
        ...

    def shutdown_write(self) -> None:
        """Close the command's standard input."""
        ...

    def close(self) -> None:
        """Give the channel up; every blocked call returns or raises."""
        ...


def send(channel: Channel, data: bytes) -> None:
    """Write to a command's standard input, a packet at a time.

    In one go, paramiko would copy all that is left for every packet.

    Raises:
        OSError: The command has ended, or made no progress within the channel's time-out.
        EOFError: The connection was lost.
    """
    for start in range(0, len(data), _PIECE):
        channel.sendall(data[start : start + _PIECE])
