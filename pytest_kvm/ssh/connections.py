"""``Connections``: opens SSH connections to one guest when commands need them."""

from __future__ import annotations

import logging
import socket
import threading
import time
from collections.abc import Callable

from pytest_kvm.errors import SshUnavailable, WaitTimeout
from pytest_kvm.ssh.access import Access
from pytest_kvm.ssh.connection import Connection
from pytest_kvm.ssh.output import Channel
from pytest_kvm.waiting import Clock, NotYet, wait_until

_MOST = 8
"""Connections to one guest at most; each carries as many commands as sshd's MaxSessions (10) allows."""
_ANSWERS_AFTER = 1.0
"""Seconds after a lost connection; an sshd that answers later than that shows that the guest stays up."""
_GOES_DOWN_WITHIN = 15.0
"""Seconds from a lost connection within which a guest that powers off has ended."""
_BANNER_WITHIN = 1.0


class Connections:
    """Connections to one guest's sshd.

    While a thread waits for the guest, it holds no lock except the one that lets
    one login at a time happen. So :meth:`close` can end a login, and a thread that
    gets no answer does not keep other threads from a connection that works.

    Args:
        access: Where sshd listens, and the keys of both sides.
        login: Seconds for each step of a login.
        check_alive: Raises GuestGone if the guest has ended.
        log: The guest's logger.
        guest: Name of the guest, for messages.
        clock: Measures the time to wait for sshd.
    """

    def __init__(
        self,
        access: Access,
        *,
        login: float,
        check_alive: Callable[[], None],
        log: logging.Logger,
        guest: str,
        clock: Clock,
    ) -> None:
        self._access = access
        self._login_within = login
        self._check_alive = check_alive
        self._log = log
        self._guest = guest
        self._clock = clock
        self._turn = threading.Lock()
        """Held during a login."""
        self._lock = threading.Lock()
        """Guards the two attributes below."""
        self._connections: list[Connection] = []
        self._closed = False

    @property
    def alive(self) -> bool:
        """Whether a connection is logged in; it stays so while the guest is paused."""
        return bool(self._alive())

    def connect(self, sock: socket.socket | None) -> None:
        """Log in, once, over ``sock`` if one is given.

        Raises:
            LoginRefused: sshd refused the key or showed a foreign host key.
            SshUnavailable: No connection could be made, it broke off, or :meth:`close` was called.
        """
        with self._turn:
            self._log_in(sock)

    def close(self) -> None:
        """Close every connection and allow no new one; a login under way ends with SshUnavailable."""
        with self._lock:
            self._closed = True
            connections, self._connections = self._connections, []
        for connection in connections:
            connection.close()

    def session(self, *, within: float) -> tuple[Connection, Channel]:
        """Open a session on the newest connection that takes one, or on a new connection.

        Args:
            within: Seconds for sshd to answer; a login may take as many more.

        Raises:
            GuestGone: The guest ended.
            LoginRefused: sshd refused the key or showed a foreign host key.
            SshUnavailable: No connection could be made, it broke off, or sshd did not answer.
        """
        if taken := self._on_those_there_are(within):
            return taken
        if not self._turn.acquire(timeout=within):
            raise SshUnavailable(f"{self._guest}: another login did not end within {within:.0f} s")
        try:
            # Another thread may have logged in while this one waited for its turn.
            if taken := self._on_those_there_are(within):
                return taken
            if len(self._alive()) < _MOST:
                connection = self._reconnect(within)
                channel = connection.session(within=within)
                if channel is not None:
                    return connection, channel
        finally:
            self._turn.release()
        raise SshUnavailable(
            f"{self._guest}: sshd takes no more commands on {len(self._alive())} connections",
            resolution="end processes that were started, or raise MaxSessions in the guest",
        )

    def _alive(self) -> list[Connection]:
        return [connection for connection in self._connections if connection.alive]

    def _on_those_there_are(self, within: float) -> tuple[Connection, Channel] | None:
        for connection in reversed(self._alive()):
            try:
                channel = connection.session(within=within)
            except SshUnavailable as lost:
                if connection.alive:
                    raise
                # No command was started over it, so another connection may be used.
                self._log.debug("%s", lost.brief)
                continue
            if channel is not None:
                return connection, channel
        return None

    def _reconnect(self, within: float) -> Connection:
        return wait_until(
            self._try_login,
            describe=f"SSH of {self._guest}",
            timeout=within,
            error=SshUnavailable,
            log=self._log,
            clock=self._clock,
        )

    def _try_login(self) -> Connection:
        self._check_alive()
        try:
            return self._log_in(None)
        except SshUnavailable as error:
            if self._closed:
                raise
            raise NotYet(error.brief) from error

    def _log_in(self, sock: socket.socket | None) -> Connection:
        connection = Connection.open(
            self._access, sock, within=self._login_within, log=self._log, guest=self._guest
        )
        with self._lock:
            if self._closed:
                connection.close()
                raise SshUnavailable(f"{self._guest}: the connections were closed meanwhile")
            # From now on close() closes it too.
            self._connections = [*self._alive(), connection]
        try:
            connection.log_in(self._access)
        except BaseException:
            with self._lock:
                self._connections = [each for each in self._connections if each is not connection]
            raise
        return connection


def ends_soon(access: Access, *, is_alive: Callable[[], bool], log: logging.Logger) -> bool:
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
