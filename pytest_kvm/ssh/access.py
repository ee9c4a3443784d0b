"""``Access``: port, user, key and host key of a guest's sshd."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class Access:
    """How to log in to a guest by SSH: always by loopback, and only one host key is accepted."""

    port: int
    key_file: Path
    """Private key in OpenSSH's format, mode 0600."""
    host_key: str
    """``ssh-ed25519 AAAA…``: the only host key that is accepted."""
    known_hosts: Path
    """The host key as a known_hosts file, for :meth:`ssh_command`."""
    user: str = "root"
    host: str = "127.0.0.1"

    def ssh_argv(self) -> list[str]:
        """Return the ``ssh`` command that logs in; it ignores the caller's own configuration."""
        return [
            "ssh",
            *("-F", "none"),
            *("-i", str(self.key_file)),
            *("-p", str(self.port)),
            *("-o", "IdentitiesOnly=yes"),
            *("-o", f"UserKnownHostsFile={self.known_hosts}"),
            *("-o", "StrictHostKeyChecking=yes"),
            f"{self.user}@{self.host}",
        ]

    def ssh_command(self) -> str:
        """Return the command of :meth:`ssh_argv` as a line to paste into a terminal."""
        return shlex.join(self.ssh_argv())
