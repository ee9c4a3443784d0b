"""What the verbs need of a connection that runs commands.

:class:`~pytest_kvm.handles.ssh.SshShell` is the implementation; this file
keeps every other handle free of the transport library.
"""

from __future__ import annotations

import socket
from collections.abc import Mapping
from typing import TYPE_CHECKING, Protocol

from pytest_kvm.handles.commandline import Command

if TYPE_CHECKING:
    from pytest_kvm.handles.channel import Channel
    from pytest_kvm.handles.process import Host, Process
    from pytest_kvm.handles.result import CommandResult


class Shell(Protocol):
    """A connection to one guest; it opens lazily and reopens when it was lost."""

    @property
    def connected(self) -> bool:
        """Say whether a login stands."""
        ...

    @property
    def processes(self) -> tuple[Process, ...]:
        """What :meth:`start` started and has not ended yet."""
        ...

    def connect(self, sock: socket.socket | None = None) -> None:
        """Log in, over ``sock`` if one is given.

        Raises:
            LoginRefused: sshd refused the key or showed a foreign host key.
            SshUnavailable: The connection broke off.
        """
        ...

    def close(self) -> None:
        """Drop the connection; what runs over it ends with SshUnavailable."""
        ...

    def run(
        self,
        command: Command,
        *,
        input: str | bytes | None = None,  # noqa: A002 - subprocess.run's word
        env: Mapping[str, str] | None = None,
        cwd: str | None = None,
        user: str | None = None,
        timeout: float | None = None,
        check: bool = True,
    ) -> CommandResult:
        """Run a command to its end.

        Raises:
            CommandFailed: It exited non-zero and ``check`` is true; or the login
                shell ended before it, with exit code 0.
            CommandTimeout: It ran longer than ``timeout`` seconds.
            GuestGone: The guest ended.
            SshUnavailable: The connection was lost.
        """
        ...

    def start(
        self,
        command: Command,
        *,
        env: Mapping[str, str] | None = None,
        cwd: str | None = None,
        user: str | None = None,
    ) -> Process:
        """Start a command in the background."""
        ...

    def channel(self, command: Command, *, user: str | None = None) -> tuple[Channel, Host]:
        """Start a command and hand over its raw channel, for whoever moves much data."""
        ...
