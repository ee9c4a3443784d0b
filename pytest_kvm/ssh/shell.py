"""Commands over SSH: log in once, run many.

Connections open lazily and reopen when they were lost between two commands.
A command that may have started is never run a second time.
"""

from __future__ import annotations

import contextlib
import logging
import socket
import threading
import time
from collections.abc import Callable, Mapping
from functools import partial

from pytest_kvm.errors import CommandTimeout, GuestError, GuestGone, SshUnavailable
from pytest_kvm.results import CommandResult, label
from pytest_kvm.settings import Timeouts
from pytest_kvm.ssh.access import Access
from pytest_kvm.ssh.channel import Channel
from pytest_kvm.ssh.command_line import Command, as_given, command_line, signal_line
from pytest_kvm.ssh.connection import Connection
from pytest_kvm.ssh.connections import Connections, goes_down
from pytest_kvm.ssh.process import CommandContext, Process
from pytest_kvm.waiting import Clock

_SIGNAL_WITHIN = 10.0


class Shell:
    """A guest's shell.

    Args:
        access: Where sshd listens, and the keys of both sides.
        log: ``pytest_kvm.<guest>``; gets every command and its output.
        timeouts: Already scaled for the accelerator.
        is_alive: Says whether the guest's domain still runs.
        end_reason: Says why it does not.
        clock: Measures how long commands take.
    """

    def __init__(
        self,
        access: Access,
        *,
        log: logging.Logger,
        timeouts: Timeouts,
        is_alive: Callable[[], bool],
        end_reason: Callable[[], str],
        clock: Clock = time.monotonic,
    ) -> None:
        self._access = access
        self._guest = log.name.removeprefix("pytest_kvm.")
        self._log = log
        self._timeouts = timeouts
        self._is_alive = is_alive
        self._end_reason = end_reason
        self._clock = clock
        self._connections = self._new_connections()
        self._processes: list[Process] = []

    # ------------------------------------------------------------ the connection

    @property
    def connected(self) -> bool:
        """Say whether a connection is open; a frozen guest's still is."""
        return self._connections.alive

    def connect(self, sock: socket.socket | None = None) -> None:
        """Log in, once, over ``sock`` if one is given.

        Raises:
            LoginRefused: sshd refused the key or showed a foreign host key.
            SshUnavailable: No connection, it broke off, or :meth:`close` was called.
        """
        self._connections.connect(sock)

    def close(self) -> None:
        """Drop every connection, at once; what runs over them, or logs in, ends with SshUnavailable."""
        closed, self._connections = self._connections, self._new_connections()
        closed.close()

    # ------------------------------------------------------------ commands

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

        Args:
            command: A list is quoted word by word; a string is for the login
                user's shell as it is.
            input: Its standard input; None: empty.
            env: Variables to add.
            cwd: Working folder; None: the user's home.
            user: Who runs it; None: the login user.
            timeout: Seconds, after which it is killed; None: the run's command time-out.
            check: Raise if it exits with anything but 0.

        Raises:
            CommandFailed: It exited non-zero and ``check`` is true; or the login
                shell ended before it, with exit code 0.
            CommandTimeout: It ran longer than ``timeout``; carries what it wrote until then.
            GuestGone: The guest ended.
            SshUnavailable: The connection was lost.
        """
        process = self._launch(command, env=env, cwd=cwd, user=user, within=timeout)
        if input:
            data = input.encode() if isinstance(input, str) else input
            threading.Thread(target=_feed, args=(process, data), daemon=True).start()
        else:
            process.close_stdin()
        try:
            result = process.wait(timeout)
        except CommandTimeout:
            process.kill()
            raise
        finally:
            process.release()
        name = label(process.argv)[:24]
        self._log.info("[%s] exit code %d after %.2f s", name, result.exit_code, result.duration)
        return result.check() if check else result

    def start(
        self,
        command: Command,
        *,
        env: Mapping[str, str] | None = None,
        cwd: str | None = None,
        user: str | None = None,
    ) -> Process:
        """Start a command in the background; its standard input stays open.

        Raises:
            GuestGone: The guest ended.
            SshUnavailable: No connection, or it broke off.
        """
        process = self._launch(command, env=env, cwd=cwd, user=user)
        self._processes = [*self.processes, process]
        return process

    @property
    def processes(self) -> tuple[Process, ...]:
        """What :meth:`start` started and has not ended yet."""
        return tuple(process for process in self._processes if process.running)

    def channel(
        self,
        command: Command,
        *,
        env: Mapping[str, str] | None = None,
        cwd: str | None = None,
        user: str | None = None,
        within: float | None = None,
    ) -> tuple[Channel, CommandContext]:
        """Start a command and hand over its raw channel, for whoever moves much data.

        Args:
            command: As for :meth:`run`, with ``env``, ``cwd`` and ``user``.
            env: See there.
            cwd: See there.
            user: See there.
            within: Seconds until sshd has to have answered; at most, and by
                default, those of a login.

        Raises:
            GuestGone: The guest ended.
            SshUnavailable: No connection, it broke off, or sshd did not answer.
        """
        login = self._timeouts.login
        within = login if within is None else min(within, login)
        given = as_given(command)
        line = command_line(given, env=env or {}, cwd=cwd, user=user, login=self._access.user)
        connection, channel = self._connections.session(within=within)
        self._log.info("$ %s", label(given))
        try:
            connection.execute(channel, line, within=within)
        except SshUnavailable as error:
            raise self._loss_of(connection) or error from None
        return channel, CommandContext(
            guest=self._guest,
            log=self._log,
            lost=partial(self._loss_of, connection),
            round_trip=connection.round_trip,
            send_signal=partial(self._send_signal, as_root=user is not None and self._access.user != "root"),
            timeout=self._timeouts.command,
            clock=self._clock,
        )

    # ------------------------------------------------------------ inside

    def _launch(
        self,
        command: Command,
        *,
        env: Mapping[str, str] | None = None,
        cwd: str | None = None,
        user: str | None = None,
        within: float | None = None,
    ) -> Process:
        channel, context = self.channel(command, env=env, cwd=cwd, user=user, within=within)
        return Process(channel, as_given(command), context=context)

    def _new_connections(self) -> Connections:
        return Connections(
            self._access,
            login=self._timeouts.login,
            check_alive=self._check_alive,
            log=self._log,
            guest=self._guest,
            clock=self._clock,
        )

    def _check_alive(self) -> None:
        if not self._is_alive():
            raise self._guest_gone()

    def _guest_gone(self) -> GuestGone:
        return GuestGone(f"{self._guest}: the guest has ended: {self._end_reason()}")

    def _loss_of(self, connection: Connection) -> GuestError | None:
        """Say why nothing can come over a connection any more."""
        if self._is_alive() and connection.alive:
            return None
        if goes_down(self._access, is_alive=self._is_alive, log=self._log):
            return self._guest_gone()
        return SshUnavailable(
            f"{self._guest}: the SSH connection was lost while the guest runs on",
            resolution="where a test restarts sshd or the network, start() that command instead",
        )

    def _send_signal(self, name: str, group: int, *, as_root: bool) -> None:
        try:
            process = self._launch(signal_line(name, group, as_root=as_root), within=_SIGNAL_WITHIN)
            try:
                process.wait(_SIGNAL_WITHIN)
            finally:
                process.release()
        except GuestError as error:
            self._log.warning("%s: could not send SIG%s: %s", self._guest, name, error.brief)


def _feed(process: Process, data: bytes) -> None:
    """Write a command's standard input; one that ends before it has read all is no error."""
    with contextlib.suppress(GuestError):
        process.write(data)
    process.close_stdin()
