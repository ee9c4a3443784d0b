"""An SSH server inside the test process that runs commands on this machine.

What a unit test needs of sshd, with paramiko's server side: sessions that exec
a shell line in a process group of its own, exit status at the process's end,
end of file when the last holder of a pipe closes it.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import threading
from io import StringIO
from pathlib import Path

import paramiko
from paramiko.common import cMSG_CHANNEL_SUCCESS

from pytest_kvm.host.ssh_keys import new_key_pair, write_private
from pytest_kvm.ssh.access import Access


class LocalSshd:
    """A server on a loopback port; close it to end everything it started."""

    def __init__(self, folder: Path, *, max_sessions: int = 10) -> None:
        self.folder = folder
        self.max_sessions = max_sessions
        self.logins = 0
        self.commands: list[str] = []
        self.start_up = ""
        """Stands for the start-up files of its shell."""
        self._host, self._user = new_key_pair(), new_key_pair()
        self.key_file = write_private(folder / "key", self._user.private)
        self._running = threading.Event()
        self._running.set()
        self.asked = threading.Event()
        """Set when it was asked for something while frozen."""
        self._children: list[subprocess.Popen[bytes]] = []
        self._transports: list[paramiko.Transport] = []
        self._socket = socket.create_server(("127.0.0.1", 0))
        self._thread = threading.Thread(target=self._accept)
        self._thread.start()

    def access(self, *, host_key: str | None = None, key_file: Path | None = None) -> Access:
        return Access(
            port=self._socket.getsockname()[1],
            key_file=key_file or self.key_file,
            host_key=host_key or self._host.public,
            known_hosts=self.folder / "known_hosts",
            user="root",
        )

    def drop(self) -> None:
        """Break every connection."""
        for transport in self._transports:
            transport.close()

    def freeze(self) -> None:
        """Answer nothing until :meth:`thaw`."""
        self._running.clear()

    def thaw(self) -> None:
        """Go on."""
        self._running.set()

    def wait_running(self) -> None:
        """Block while frozen."""
        if not self._running.is_set():
            self.asked.set()
        self._running.wait()

    def close(self) -> None:
        self.thaw()
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        self._thread.join()
        self.drop()
        for child in self._children:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)
            child.wait()
        for transport in self._transports:
            transport.join()

    def start(self, channel: paramiko.Channel, line: str) -> None:
        self.commands.append(line)
        child = subprocess.Popen(
            ["/bin/sh", "-c", f"{self.start_up}\n{line}"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
            cwd=self.folder,
        )
        self._children.append(child)
        threading.Thread(target=self._serve, args=(channel, child), daemon=True).start()

    def may_open(self) -> bool:
        return sum(child.poll() is None for child in self._children) < self.max_sessions * self.logins

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._socket.accept()
            except OSError:
                return
            transport = paramiko.Transport(connection)
            transport.set_log_channel("local_sshd")
            transport.add_server_key(paramiko.Ed25519Key.from_private_key(StringIO(self._host.private)))
            self._transports.append(transport)
            with contextlib.suppress(paramiko.SSHException, EOFError, OSError):
                transport.start_server(server=_Rules(self, self._user.public))

    def _serve(self, channel: paramiko.Channel, child: subprocess.Popen[bytes]) -> None:
        readers = [
            threading.Thread(target=_copy, args=(child.stdout, channel.sendall), daemon=True),
            threading.Thread(target=_copy, args=(child.stderr, channel.sendall_stderr), daemon=True),
        ]
        threading.Thread(target=_feed, args=(channel, child), daemon=True).start()
        for reader in readers:
            reader.start()
        code = child.wait()
        with contextlib.suppress(OSError, EOFError):
            # sshd says "exit-signal" instead: see test_link.
            channel.send_exit_status(code if code >= 0 else 128 - code)
        for reader in readers:
            reader.join()
        with contextlib.suppress(EOFError):  # the connection was lost meanwhile
            channel.close()


class _Rules(paramiko.ServerInterface):
    def __init__(self, sshd: LocalSshd, authorized: str) -> None:
        self._sshd = sshd
        self._authorized = authorized

    def get_allowed_auths(self, username):
        return "publickey"

    def check_auth_publickey(self, username, key):
        if f"{key.get_name()} {key.get_base64()}" != self._authorized:
            return paramiko.AUTH_FAILED
        self._sshd.logins += 1
        return paramiko.AUTH_SUCCESSFUL

    def check_channel_request(self, kind, chanid):
        self._sshd.wait_running()
        may = kind == "session" and self._sshd.may_open()
        return paramiko.OPEN_SUCCEEDED if may else paramiko.OPEN_FAILED_RESOURCE_SHORTAGE

    def check_channel_exec_request(self, channel, command):
        # paramiko answers after this function: a quick command's end would come first.
        answer = paramiko.Message()
        answer.add_byte(cMSG_CHANNEL_SUCCESS)
        answer.add_int(channel.remote_chanid)
        channel.transport._send_user_message(answer)
        self._sshd.start(channel, command.decode())
        return True


def _copy(pipe, send) -> None:
    with pipe, contextlib.suppress(OSError, EOFError):
        while data := os.read(pipe.fileno(), 65536):
            send(data)


def _feed(channel: paramiko.Channel, child: subprocess.Popen[bytes]) -> None:
    assert child.stdin is not None
    with contextlib.suppress(OSError, EOFError, ValueError), child.stdin:
        while data := channel.recv(65536):
            os.write(child.stdin.fileno(), data)
