"""``Shell``: runs commands in a guest over SSH connections that stay open.

A connection is opened when a command needs one. If it is lost between two
commands, the next command opens another. A command that may have started is
never run a second time.
"""

from __future__ import annotations

import contextlib
import logging
import socket
import threading
import time
from collections.abc import Callable, Mapping
from functools import partial

from pytest_kvm.errors import CommandTimeout, GuestError, GuestGone, SshUnavailable, WaitTimeout
from pytest_kvm.results import CommandResult, label
from pytest_kvm.settings import Timeouts
from pytest_kvm.ssh.access import Access
from pytest_kvm.ssh.command_line import Command, as_given, command_line, signal_line
from pytest_kvm.ssh.connection import Connection, ConnectionPool
from pytest_kvm.ssh.output import PIECE, Channel
from pytest_kvm.ssh.process import CommandContext, Process
from pytest_kvm.waiting import Clock, NotYet, wait_until

_SIGNAL_WITHIN = 10.0
_ANSWERS_AFTER = 1.0
"""Seconds after a lost connection; an sshd that answers later than that shows that the guest stays up."""
_GOES_DOWN_WITHIN = 15.0
"""Seconds from a lost connection within which a guest that powers off has ended."""
_BANNER_WITHIN = 1.0


class Shell:
    """Runs commands in one guest.

    Args:
        access: Where sshd listens, and the keys of both sides.
        log: ``pytest_kvm.<guest>``; gets every command and its output.
        timeouts: The run's time-outs, already multiplied by the factor.
        is_alive: Returns whether the guest's domain still runs.
        end_reason: Returns why the domain has ended.
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
        """Whether a connection is open; it stays open while the guest is paused."""
        return self._connections.alive

    def connect(self, sock: socket.socket | None = None) -> None:
        """Log in, once, over ``sock`` if one is given.

        Raises:
            LoginRefused: sshd refused the key or showed a foreign host key.
            SshUnavailable: No connection could be made, it broke off, or :meth:`close` was called.
        """
        self._connections.connect(sock)

    def close(self) -> None:
        """Close every connection at once; commands and logins over them end with SshUnavailable."""
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
        """Run a command and wait for its end.

        Args:
            command: A list is quoted word by word; a string is passed to the
                login user's shell unchanged.
            input: The command's standard input; None: empty.
            env: Variables to add.
            cwd: Working folder; None: the user's home.
            user: The user that runs it; None: the login user.
            timeout: Seconds, after which it is killed; None: the run's command time-out.
            check: Raise if the command exits with anything but 0.

        Raises:
            CommandFailed: The command exited non-zero and ``check`` is true; or the
                login shell ended with exit code 0 before it ran the command.
            CommandTimeout: The command ran longer than ``timeout``; carries what it wrote until then.
            GuestGone: The guest ended.
            SshUnavailable: The connection was lost.
        """
        process = self._launch(command, env=env, cwd=cwd, user=user, within=timeout)
        _give_input(process, input.encode() if isinstance(input, str) else input or b"")
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
            SshUnavailable: No connection could be made, or it broke off.
        """
        process = self._launch(command, env=env, cwd=cwd, user=user)
        self._processes = [*self.processes, process]
        return process

    @property
    def processes(self) -> tuple[Process, ...]:
        """The processes that :meth:`start` has started and that still run."""
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
        """Start a command and return its raw channel, for a caller that moves much data.

        Args:
            command: As for :meth:`run`.
            env: As for :meth:`run`.
            cwd: As for :meth:`run`.
            user: As for :meth:`run`.
            within: Seconds for sshd to answer; the login time-out is the default and the maximum.

        Raises:
            GuestGone: The guest ended.
            SshUnavailable: No connection could be made, it broke off, or sshd did not answer.
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

    def _new_connections(self) -> ConnectionPool:
        return ConnectionPool(
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
        """Return why nothing can come over a connection any more; None if it still works."""
        if self._is_alive() and connection.alive:
            return None
        if _ends_soon(self._access, is_alive=self._is_alive, log=self._log):
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


def _give_input(process: Process, data: bytes) -> None:
    """Give a command its standard input; the thread that waits for the command must not block on it."""
    if len(data) > PIECE:
        threading.Thread(target=_feed, args=(process, data), daemon=True).start()
    else:
        _feed(process, data)  # fits into the window that sshd opens with (RFC 4254 §5.2)


def _feed(process: Process, data: bytes) -> None:
    """Write a command's standard input; it is no error if the command ends before it has read all."""
    with contextlib.suppress(GuestError):
        process.write(data)
    process.close_stdin()


def _ends_soon(access: Access, *, is_alive: Callable[[], bool], log: logging.Logger) -> bool:
    """Wait until a guest has ended, or its sshd answers; return whether the guest has ended.

    When QEMU ends, the connection closes a moment before libvirt reports the end.
    When a guest powers off, its sshd ends, and the connection with it, seconds
    before the guest does.
    """
    lost_at = time.monotonic()

    def has_ended() -> bool:
        if not is_alive():
            return True
        if time.monotonic() - lost_at > _ANSWERS_AFTER and _answers(access):
            return False
        raise NotYet("it runs, and its sshd does not answer")

    try:
        return wait_until(
            has_ended, describe="the guest's end", timeout=_GOES_DOWN_WITHIN, every=0.05, log=log
        )
    except WaitTimeout:
        return False


def _answers(access: Access) -> bool:
    """Return whether sshd answers with its banner; a forwarded port accepts connections even without sshd."""
    try:
        with socket.create_connection((access.host, access.port), timeout=_BANNER_WITHIN) as probe:
            return probe.recv(4) == b"SSH-"
    except OSError:
        return False
