"""``Transfer``: a script in the guest that much data is sent to, or received from."""

from __future__ import annotations

import re
import threading
from types import TracebackType
from typing import Protocol, Self

from pytest_kvm.errors import (
    RemoteDiskFull,
    RemoteFileDenied,
    RemoteFileError,
    RemoteFileMissing,
    SshUnavailable,
)
from pytest_kvm.results import tail
from pytest_kvm.ssh.command_line import Command
from pytest_kvm.ssh.output import START_UP_LIMIT, Channel, CommandStart, send
from pytest_kvm.ssh.process import CommandContext

_READ_BYTES = 16 * 1024**2
_ERRORS_KEPT = 64 * 1024
_EXIT_WITHIN = 30.0
_REASONS: tuple[tuple[re.Pattern[bytes], type[RemoteFileError]], ...] = (
    (re.compile(rb"No such file or directory"), RemoteFileMissing),
    (re.compile(rb"Permission denied|Operation not permitted|Read-only file system"), RemoteFileDenied),
    (re.compile(rb"No space left on device|[Qq]uota exceeded"), RemoteDiskFull),
)
"""Error texts of strerror(3) in the C locale, which every script sets, and the errors they lead to."""


class CommandStarter(Protocol):
    """Starts a command and returns its channel: :class:`~pytest_kvm.ssh.shell.Shell`."""

    def channel(self, command: Command, *, user: str | None = None) -> tuple[Channel, CommandContext]:
        """Start a command."""
        ...


class ScriptEnded(Exception):  # noqa: N818 - finish() tells the error
    """The script ended before it had taken all its data; :meth:`Transfer.finish` says why."""


class Transfer:
    """A running script; a context manager that closes its channel.

    Args:
        opener: Starts the script.
        script: POSIX shell script; it runs in the C locale.
        path: The guest's path that the script reads or writes, for messages.
        user: The user that runs the script; None: the login user.
    """

    def __init__(self, opener: CommandStarter, script: str, *, path: str, user: str | None = None) -> None:
        self._channel, self._context = opener.channel(f"LC_ALL=C; export LC_ALL\n{script}", user=user)
        # There is no time-out for the whole transfer, only for a stop of its data.
        self._channel.settimeout(self._context.timeout)
        self._path = path
        self._out_start, self._err_start = CommandStart(), CommandStart()
        self._ahead = memoryview(b"")
        self._errors = bytearray()
        self._listener = threading.Thread(
            target=self._listen, name=f"{self._context.guest}: {path}", daemon=True
        )
        self._listener.start()

    def write(self, data: bytes) -> int:
        """Send data to the script.

        Raises:
            ScriptEnded: The script takes no more data.
        """
        try:
            send(self._channel, data)
        except (OSError, EOFError) as error:
            raise ScriptEnded from error
        return len(data)

    def read(self, size: int) -> bytes:
        """Return 1 to ``size`` bytes of the script's output, b"" at its end.

        Raises:
            RemoteFileError: Nothing came within a command's time-out.
        """
        while not self._ahead and (received := self._receive()):
            self._ahead = memoryview(self._out_start.feed(received))
            if self._out_start.overrun:
                raise self._start_up_overflow(bytes(self._ahead[:_ERRORS_KEPT]))
        data, self._ahead = self._ahead[:size], self._ahead[size:]
        return bytes(data)

    def finish(self, *, harmless: int = 0) -> bytes:
        """Send the end of the data, wait for the script's exit and return its stderr.

        Args:
            harmless: An exit code that is accepted beside 0.

        Raises:
            RemoteFileError: The script failed; the subclass follows from its message.
            GuestGone: The guest ended.
            SshUnavailable: The connection was lost.
        """
        try:
            self._channel.shutdown_write()
        except (OSError, EOFError) as error:
            raise self._context.lost() or self._break_off_error() from error
        if not self._channel.status_event.wait(self._context.timeout):
            raise self._stall_error()
        self._listener.join(_EXIT_WITHIN)
        code, said = self._channel.exit_status, bytes(self._errors)
        if code == -1:
            raise self._context.lost() or self._break_off_error()
        if code not in (0, harmless):
            raise self._failure(code, said)
        if not self._err_start.happened:
            raise RemoteFileError(
                f"{self._where()}: the login shell ended with exit code {code} and did nothing for it",
                details=tail(said)[0],
                resolution="look for an `exit` or `exec` in the shell's start-up files",
            )
        return said

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._channel.close()

    def _receive(self) -> bytes:
        """Return all that has come: if only a part is read, paramiko moves all the rest in memory."""
        try:
            return self._channel.recv(_READ_BYTES)
        except TimeoutError as error:
            raise self._stall_error() from error
        except (OSError, EOFError):
            return b""

    def _listen(self) -> None:
        while True:
            try:
                data = self._channel.recv_stderr(_READ_BYTES)
            except TimeoutError:
                continue  # no errors for a while: go on listening
            except (OSError, EOFError):
                break
            if not data:
                break
            self._hear(self._err_start.feed(data))
        self._hear(self._err_start.finish())

    def _hear(self, data: bytes) -> None:
        self._errors += data[: _ERRORS_KEPT - len(self._errors)]

    def _where(self) -> str:
        return f"{self._context.guest}:{self._path}"

    def _failure(self, code: int, said: bytes) -> RemoteFileError:
        kind = next((kind for pattern, kind in _REASONS if pattern.search(said)), RemoteFileError)
        lines = said.decode(errors="replace").strip().splitlines()
        last = lines[-1][-200:] if lines else f"exit code {code}"
        return kind(f"{self._where()}: {last}", details=tail(said)[0] if len(lines) > 1 else "")

    def _start_up_overflow(self, printed: bytes) -> RemoteFileError:
        return RemoteFileError(
            f"{self._where()}: the shell's start-up files print more than {START_UP_LIMIT} bytes",
            details=tail(printed)[0],
            resolution="have them print nothing where the shell is not interactive",
        )

    def _stall_error(self) -> RemoteFileError:
        return RemoteFileError(
            f"{self._where()}: no progress for {self._context.timeout:.0f} s",
            details=tail(bytes(self._errors))[0],
        )

    def _break_off_error(self) -> SshUnavailable:
        return SshUnavailable(f"{self._where()}: the transfer broke off")
