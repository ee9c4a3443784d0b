"""A guest's verbs for files and ports."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from pytest_kvm.handles.booted import Booted
from pytest_kvm.ssh.files import GET_LIMIT, Files
from pytest_kvm.ssh.output import OUTPUT_LIMIT

if TYPE_CHECKING:
    from pytest_kvm.machine.port_forwards import Forward


class FileVerbs(Booted):
    """Paths in the guest are absolute or below the login user's home."""

    def put(
        self, local: str | os.PathLike[str], remote: str, *, mode: int | None = None, owner: str | None = None
    ) -> None:
        """Copy a file, or a folder's content, into the guest.

        Args:
            local: File or folder on the host.
            remote: Path in the guest; with a slash at the end, the folder to put it into.
            mode: A single file's permission bits; None: those of ``local``.
            owner: "user" or "user:group"; None: the login user.

        Raises:
            OSError: ``local`` cannot be read.
            RemoteFileError: The guest could not write.
        """
        self._files.put(local, remote, mode=mode, owner=owner)

    def get(self, remote: str, local: str | os.PathLike[str], *, max_bytes: int = GET_LIMIT) -> Path:
        """Copy a file, or a folder's content, out of the guest and return where it is.

        Nothing is written outside ``local``, whatever the guest sends.

        Raises:
            OSError: ``local`` cannot be written.
            RemoteFileError: The guest could not read, or sent more than ``max_bytes``.
        """
        return self._files.get(remote, local, max_bytes=max_bytes)

    def write_text(
        self, path: str, text: str, *, mode: int = 0o644, owner: str | None = None, append: bool = False
    ) -> None:
        """Write UTF-8 text to a file in the guest; see :meth:`write_bytes`."""
        self._files.write_text(path, text, mode=mode, owner=owner, append=append)

    def write_bytes(
        self, path: str, data: bytes, *, mode: int = 0o644, owner: str | None = None, append: bool = False
    ) -> None:
        """Write a file in the guest, whole or not at all.

        Args:
            path: Path in the guest.
            data: Its new content.
            mode: Permission bits; when appending, those of a new file.
            owner: "user" or "user:group"; None: the login user.
            append: Add to what is there.

        Raises:
            RemoteFileError: The guest could not write.
        """
        self._files.write_bytes(path, data, mode=mode, owner=owner, append=append)

    def read_text(self, path: str, *, max_bytes: int = OUTPUT_LIMIT) -> str:
        """Return a file's content as UTF-8, what is not UTF-8 replaced by U+FFFD."""
        return self._files.read_text(path, max_bytes=max_bytes)

    def read_bytes(self, path: str, *, max_bytes: int = OUTPUT_LIMIT) -> bytes:
        """Return a file's content.

        Raises:
            RemoteFileError: It cannot be read, or is larger than ``max_bytes``.
        """
        return self._files.read_bytes(path, max_bytes=max_bytes)

    def forward(self, guest_port: int, *, host_port: int = 0) -> Forward:
        """Make a TCP port of the guest reachable on the host's loopback address.

        Args:
            guest_port: Port in the guest.
            host_port: Port on the host; 0: a free one.

        Returns:
            Its ``host`` and ``port``; a context manager that closes it.

        Raises:
            NetworkFailed: The host's port is taken.
        """
        return self.machine.forwards.add(guest_port, host_port=host_port)

    @property
    def _files(self) -> Files:
        machine = self.machine
        return Files(machine.shell, log=machine.log)
