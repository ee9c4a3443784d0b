"""SSH connections to one guest, logged in by key against a pinned host key. The sole user of paramiko.

:class:`ConnectionPool` opens a :class:`Connection` when a command needs one.
"""

from __future__ import annotations

import base64
import contextlib
import logging
import signal
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

import paramiko
from paramiko.packet import Packetizer

from pytest_kvm.errors import HostError, LoginRefused, SshUnavailable
from pytest_kvm.ssh.access import Access
from pytest_kvm.ssh.output import Channel
from pytest_kvm.waiting import Clock, NotYet, wait_until

_WINDOW = 8 * 1024**2
"""Bytes that a guest may send ahead for each command; a slow reader keeps as many in memory."""
_PACKET = 128 * 1024
_KEEPALIVE = 15
_ANSWER_WITHIN = 10.0
"""Seconds to wait for an answer that sshd gives at once if the guest runs."""
_CHANNEL_REQUEST = 98
"""SSH_MSG_CHANNEL_REQUEST, RFC 4254 §9."""

# curve25519 costs a guest under TCG the least of all key exchanges: a login
# is 0.3 s shorter under TCG than with the post-quantum one that is the default.
_KEX: Final = ("curve25519-sha256@libssh.org", "ecdh-sha2-nistp256")

# Under TCG a guest with AES instructions encrypts 92 MB/s by aes128-ctr, 28 by
# aes128-gcm and 30 by chacha20-poly1305 (OpenSSH's default, which paramiko does
# not have), and authenticates 98 MB/s by SHA-512, 39 by SHA-256.
_CIPHERS: Final = ("aes128-ctr",)
_MACS: Final = ("hmac-sha2-512-etm@openssh.com", "hmac-sha2-512")

_BROKEN: Final = (paramiko.SSHException, EOFError, OSError)


class Connection:
    """A connection to sshd; a lost connection is not reopened, a new one replaces it."""

    def __init__(self, transport: paramiko.Transport, sock: socket.socket, *, guest: str) -> None:
        self._transport = transport
        self._sock = sock
        self._guest = guest
        self._asking = threading.Lock()

    @classmethod
    def open(
        cls, access: Access, sock: socket.socket | None, *, within: float, log: logging.Logger, guest: str
    ) -> Connection:
        """Connect to sshd, without logging in.

        The caller's SSH agent, configuration and known hosts are not used.

        Args:
            access: Where sshd listens, and the keys of both sides.
            sock: A socket that is connected to sshd already; None: connect.
            within: Seconds for each of connecting, key exchange and authentication.
            log: The guest's logger.
            guest: Name of the guest, for messages.

        Raises:
            SshUnavailable: The connection could not be made.
        """
        try:
            sock = sock or socket.create_connection((access.host, access.port), timeout=within)
            # A command consists of a few small packets, each of which waits for an answer.
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        except OSError as error:
            raise SshUnavailable(f"{guest}: no connection to sshd: {_why(error)}") from error
        transport = paramiko.Transport(
            sock,
            default_window_size=_WINDOW,
            default_max_packet_size=_PACKET,
            packetizer_class=_ExitSignals,
        )
        _set_up(transport, access, within=within, log=log)
        return cls(transport, sock, guest=guest)

    @property
    def alive(self) -> bool:
        """Whether the connection is logged in and open; it stays so while the guest is paused."""
        return self._transport.is_authenticated()

    def close(self) -> None:
        """Close the connection at once, also during its login; every command over it loses its channel."""
        # paramiko's close() alone does nothing before its thread runs, or after the peer has closed.
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_RDWR)
        self._transport.close()
        self._sock.close()

    def log_in(self, access: Access) -> None:
        """Compare the host key with the pinned one, and log in by key; if that fails, close the connection.

        Raises:
            LoginRefused: sshd refused the key or showed a foreign host key.
            SshUnavailable: The connection broke off.
            HostError: The key's file is gone.
        """
        with contextlib.ExitStack() as undo:
            undo.callback(self.close)
            try:
                key = _key_in(access.key_file, guest=self._guest)
                self._transport.start_client(timeout=self._transport.handshake_timeout)
                _check_host_key(self._transport.get_remote_server_key(), access, guest=self._guest)
                self._transport.auth_publickey(access.user, key)
            except _BROKEN as error:
                if isinstance(error, paramiko.AuthenticationException) and self._transport.is_active():
                    raise LoginRefused(
                        f"{self._guest}: sshd refused the key of user {access.user!r}",
                        resolution="keep the user and its authorized key of the seed's user-data",
                    ) from error
                raise SshUnavailable(f"{self._guest}: the login broke off: {_why(error)}") from error
            undo.pop_all()
        self._transport.set_keepalive(_KEEPALIVE)

    def session(self, *, within: float) -> Channel | None:
        """Return a channel for one command; None if sshd's MaxSessions is reached (``sshd_config(5)``).

        Raises:
            SshUnavailable: The connection was lost (it is closed then), or no answer
                came in time (it is still alive then). No command has been started.
        """
        begun = time.monotonic()
        try:
            return self._transport.open_session(timeout=within)
        except paramiko.ChannelException:
            return None
        except _BROKEN as error:
            if time.monotonic() - begun >= within:
                raise SshUnavailable(
                    f"{self._guest}: sshd did not answer within {within:.0f} s",
                    resolution="a guest that is paused, or starved by the host, answers later",
                ) from error
            # paramiko's own thread may not have noticed yet.
            self.close()
            raise SshUnavailable(f"{self._guest}: the SSH connection was lost: {_why(error)}") from error

    def execute(self, channel: Channel, line: str, *, within: float) -> None:
        """Have the login shell run a line on a channel of this connection.

        Raises:
            SshUnavailable: sshd refused, or the connection was lost. The command may have started.
        """
        # paramiko waits for sshd's answer without a limit, and a paused guest gives none.
        limit = threading.Timer(within, channel.close)
        limit.daemon = True
        limit.start()
        try:
            channel.exec_command(line)
        except _BROKEN as error:
            channel.close()
            raise SshUnavailable(f"{self._guest}: sshd did not start a command: {_why(error)}") from error
        finally:
            limit.cancel()

    def round_trip(self) -> None:
        """Return once sshd has answered, the connection is gone, or no answer came in time."""
        with self._asking:
            # paramiko waits for this answer without a limit as well.
            asked = threading.Thread(target=self._ask, name=f"{self._guest}: ask sshd", daemon=True)
            asked.start()
            asked.join(_ANSWER_WITHIN)

    def _ask(self) -> None:
        with contextlib.suppress(*_BROKEN):
            self._transport.global_request("keepalive@openssh.com", wait=True)


def _set_up(transport: paramiko.Transport, access: Access, *, within: float, log: logging.Logger) -> None:
    # What paramiko logs with a traceback it also raises, and the plugin makes its own error of it.
    quiet = logging.getLogger(f"{log.name}.paramiko")
    quiet.setLevel(logging.CRITICAL)
    transport.set_log_channel(quiet.name)
    transport.banner_timeout = transport.handshake_timeout = transport.auth_timeout = within
    options = transport.get_security_options()
    options.kex = _KEX
    options.ciphers = (*_CIPHERS, *(name for name in options.ciphers if name not in _CIPHERS))
    options.digests = (*_MACS, *(name for name in options.digests if name not in _MACS))
    # The pinned key's type first; the others too, so that a foreign key is named.
    pinned = access.host_key.split()[0]
    options.key_types = (pinned, *(kind for kind in options.key_types if kind != pinned))


def _check_host_key(shown: paramiko.PKey, access: Access, *, guest: str) -> None:
    kind, data = access.host_key.split()[:2]
    pinned = paramiko.PKey.from_type_string(kind, base64.b64decode(data))
    if shown.asbytes() == pinned.asbytes():
        return
    raise LoginRefused(
        f"{guest}: a foreign host key answered on port {access.port}",
        details=f"pinned: {kind} {pinned.fingerprint}\nshown:  {shown.get_name()} {shown.fingerprint}",
        resolution="let the guest keep its seed's host key (cloud-init's ssh_keys): no other is accepted",
    )


def _key_in(file: Path, *, guest: str) -> paramiko.PKey:
    try:
        return paramiko.PKey.from_path(file)
    except FileNotFoundError as failure:
        raise HostError(
            f"{guest}: its SSH key {file} is gone: somebody has removed it",
            resolution="remove nothing from the cache or the run folder while tests run",
        ) from failure


def _why(error: BaseException) -> str:
    return str(error) or type(error).__name__


class _ExitSignals(Packetizer):
    """Translates the message "killed by a signal" to an exit status, as a shell has it.

    RFC 4254 §6.10 has two messages for a command's end (``exit-status`` and
    ``exit-signal``); paramiko knows only the first.
    """

    def read_message(self) -> tuple[int, paramiko.Message]:
        """Return the next message; an exit signal is translated."""
        kind, message = super().read_message()
        return kind, _with_exit_status(message) if kind == _CHANNEL_REQUEST else message


def _with_exit_status(message: paramiko.Message) -> paramiko.Message:
    channel, request = message.get_int(), message.get_binary()
    if request != b"exit-signal":
        message.rewind()
        return message
    message.get_boolean()
    name = "SIG" + message.get_binary().decode(errors="replace")
    number = signal.Signals[name].value if name in signal.Signals.__members__ else 127
    status = paramiko.Message()
    status.add_int(channel).add_string("exit-status").add_boolean(b=False).add_int(128 + number)
    status.rewind()
    status.seqno = message.seqno
    return status


_MOST = 8
"""Connections to one guest at most; each carries as many commands as sshd's MaxSessions (10) allows."""


class ConnectionPool:
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
