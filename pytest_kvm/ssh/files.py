"""Copies files between host and guest, as streams over SSH.

The data is a stream to or from ``cat`` or ``tar``, which are in every guest that
has a shell. SFTP is slower, because it waits for an answer for each block.
"""

from __future__ import annotations

import io
import logging
import os
import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from shlex import quote
from typing import IO

from pytest_kvm.errors import RemoteFileError
from pytest_kvm.ssh import archive, file_scripts
from pytest_kvm.ssh.archive import FileOwner
from pytest_kvm.ssh.file_scripts import Target
from pytest_kvm.ssh.output import OUTPUT_LIMIT
from pytest_kvm.ssh.transfer import CommandStarter, ScriptEnded, Transfer

GET_LIMIT = 8 * 1024**3
"""Bytes that :meth:`Files.get` takes from a guest by default."""

_PIECE = 1024**2
_TAR_WARNED = 1
"""GNU tar's exit code when a file changed while it was read."""
_MODE = re.compile(r"[0-7]{1,5}")


class Files:
    """Copies, reads and writes files of one guest.

    Paths in the guest are absolute or below the login user's home. A copy gets
    exactly the path that is named; a path that ends with a slash is the folder
    to copy into, and the copy keeps its name. Missing parent folders are made.

    Everything is done as the login user; if an owner is given, as root.

    Args:
        shell: Starts the scripts in the guest.
        log: The guest's logger.
    """

    def __init__(self, shell: CommandStarter, *, log: logging.Logger) -> None:
        self._shell = shell
        self._log = log

    def put(
        self, local: str | os.PathLike[str], remote: str, *, mode: int | None = None, owner: str | None = None
    ) -> None:
        """Copy a file or a folder's content into the guest.

        A file appears whole or not at all. A folder is merged with a folder that
        exists in the guest; its links stay links, its modes are kept.

        Args:
            local: File or folder on the host.
            remote: Path in the guest.
            mode: Permission bits of a single file; None: those of ``local``.
            owner: "user", "user:group" or numbers; None: the login user, or
                the owner of the file that is replaced.

        Raises:
            OSError: ``local`` cannot be read.
            RemoteFileError: The guest could not write.
        """
        source = Path(local)
        bits = source.stat().st_mode & 0o7777
        target = _target(remote, name=source.absolute().name)
        if not source.is_dir():
            with source.open("rb") as file:
                size = os.fstat(file.fileno()).st_size
                script = file_scripts.file_in(
                    target, size=size, mode=bits if mode is None else mode, owner=owner
                )
                self._send(file, script, path=target.final, owner=owner)
            return
        if mode is not None:
            raise ValueError("mode= is for a single file: a folder's entries keep theirs")
        whom = self._owner(owner)
        script = file_scripts.tree_in(target, mode=bits, owner=whom)
        with Transfer(self._shell, script, path=target.final, user=_who(owner)) as transfer:
            try:
                archive.pack(source, transfer, owner=whom, log=self._log)
            except ScriptEnded:
                self._log.debug("%s: the guest's tar ended early", target.final)
            transfer.finish()

    def get(self, remote: str, local: str | os.PathLike[str], *, max_bytes: int = GET_LIMIT) -> Path:
        """Copy a file or a folder's content out of the guest and return where it is.

        Nothing is written outside ``local``, whatever the guest sends. Devices,
        pipes, sockets, and links that could lead out of the folder are left out,
        with a warning in the log.

        Args:
            remote: Path in the guest; links are followed.
            local: Path on the host. If it is an existing folder, a file is copied
                into it under its own name, and a folder's content is merged with it.
            max_bytes: More bytes than this are refused.

        Raises:
            OSError: ``local`` cannot be written.
            RemoteFileError: The guest could not read, or sent too much.
        """
        target = Path(local)
        with Transfer(self._shell, file_scripts.out(remote), path=remote) as transfer:
            kind, mode = _header(transfer)
            if kind == "tree":
                target.mkdir(parents=True, exist_ok=True)
                archive.unpack(transfer, target, most=max_bytes, log=self._log)
                if said := transfer.finish(harmless=_TAR_WARNED).decode(errors="replace").strip():
                    self._log.warning("%s: %s", remote, said)
                return target
            if target.is_dir():
                target /= Path(file_scripts.plain(remote)).name
            target.parent.mkdir(parents=True, exist_ok=True)
            with _replaced(target, mode) as file:
                _copy(transfer, file, most=max_bytes)
                transfer.finish()
        return target

    def write_bytes(
        self, path: str, data: bytes, *, mode: int = 0o644, owner: str | None = None, append: bool = False
    ) -> None:
        """Write a file in the guest, whole or not at all; files of the kernel (``/proc``, ``/sys``) directly.

        Args:
            path: Path in the guest.
            data: Its new content.
            mode: Permission bits; when appending, those of a new file.
            owner: As for :meth:`put`.
            append: Add ``data`` to the file's content.

        Raises:
            RemoteFileError: The guest could not write.
        """
        target = _target(path, name="")
        script = (
            file_scripts.file_append(target, mode=mode, owner=owner)
            if append
            else file_scripts.file_in(target, size=len(data), mode=mode, owner=owner)
        )
        self._send(io.BytesIO(data), script, path=target.final, owner=owner)

    def write_text(
        self, path: str, text: str, *, mode: int = 0o644, owner: str | None = None, append: bool = False
    ) -> None:
        """Write UTF-8 text to a file in the guest; see :meth:`write_bytes`."""
        self.write_bytes(path, text.encode(), mode=mode, owner=owner, append=append)

    def read_bytes(self, path: str, *, max_bytes: int = OUTPUT_LIMIT) -> bytes:
        """Return a file's content.

        Raises:
            RemoteFileError: The path is a folder, cannot be read, or is larger than ``max_bytes``.
        """
        content = io.BytesIO()
        with Transfer(self._shell, file_scripts.out(path), path=path) as transfer:
            if _header(transfer)[0] != "file":
                raise RemoteFileError(f"{path}: is a folder", resolution="get() copies folders")
            _copy(transfer, content, most=max_bytes)
            transfer.finish()
        return content.getvalue()

    def read_text(self, path: str, *, max_bytes: int = OUTPUT_LIMIT) -> str:
        """Return a file's content, decoded as UTF-8; bytes that are not UTF-8 become U+FFFD."""
        return self.read_bytes(path, max_bytes=max_bytes).decode(errors="replace")

    # ------------------------------------------------------------ inside

    def _send(self, file: IO[bytes], script: str, *, path: str, owner: str | None) -> None:
        with Transfer(self._shell, script, path=path, user=_who(owner)) as transfer:
            try:
                while piece := file.read(_PIECE):
                    transfer.write(piece)
            except ScriptEnded:
                self._log.debug("%s: the guest took no more", path)
            transfer.finish()

    def _owner(self, owner: str | None) -> FileOwner | None:
        """Return user and group of an owner, as tar needs both; ask the guest for a group that is missing."""
        if owner is None:
            return None
        user, _, group = owner.partition(":")
        if not group:
            with Transfer(self._shell, f"id -gn -- {quote(user)}", path=user) as transfer:
                group = transfer.read(256).decode(errors="replace").strip()
                transfer.finish()
        return FileOwner(user=user, group=group)


def _target(path: str, *, name: str) -> Target:
    return Target(path=path, name=name, token=secrets.token_hex(6))


def _who(owner: str | None) -> str | None:
    """Return the user that runs a script: root if an owner is given, as only root can change owners."""
    return None if owner is None else "root"


def _header(transfer: Transfer) -> tuple[str, int]:
    """Return kind and mode from the line that the script prints first; without that line it has failed."""
    line = b""
    while not line.endswith(b"\n") and len(line) < 32 and (byte := transfer.read(1)):
        line += byte
    kind, _, mode = line.decode(errors="replace").partition(" ")
    if kind not in ("file", "tree") or not _MODE.fullmatch(mode.rstrip("\n")):
        transfer.finish()
        raise RemoteFileError(f"the guest announced neither file nor folder: {line!r}")
    return kind, int(mode, 8) & 0o777


def _copy(transfer: Transfer, file: IO[bytes], *, most: int) -> None:
    left = most
    while piece := transfer.read(_PIECE):
        left -= len(piece)
        if left < 0:
            raise RemoteFileError(f"the file holds more than {most} bytes", resolution="raise max_bytes=")
        file.write(piece)


@contextmanager
def _replaced(path: Path, mode: int) -> Iterator[IO[bytes]]:
    """Open a temporary file beside ``path``; when it is complete, it replaces ``path``."""
    beside = path.with_name(f".{path.name}.{secrets.token_hex(6)}.tmp")
    handle = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(handle, "wb") as file:
            yield file
            os.fchmod(file.fileno(), mode)
        beside.replace(path)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise
