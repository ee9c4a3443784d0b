"""Packs folders into tar streams, and unpacks streams from guests, which may be hostile."""

from __future__ import annotations

import contextlib
import logging
import os
import stat
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Protocol, cast

from pytest_kvm.errors import RemoteFileError
from pytest_kvm.results import for_terminal

_PIECE = 1024**2
_STEP = 4 * _PIECE
"""Bytes that the parser may read for one header or one piece of data: a header states its own length."""
_MOST_ENTRIES = 1_000_000


class Writable(Protocol):
    """The receiving end of a stream."""

    def write(self, data: bytes, /) -> int:
        """Take data."""
        ...


class Readable(Protocol):
    """The source of a stream."""

    def read(self, size: int, /) -> bytes:
        """Return at most ``size`` bytes, b"" at the end."""
        ...


@dataclass(frozen=True, kw_only=True)
class FileOwner:
    """The owner that a folder tree gets in the guest: user and group, as names or numbers."""

    user: str
    group: str


def pack(folder: Path, into: Writable, *, owner: FileOwner | None, log: logging.Logger) -> None:
    """Write a folder's content as a tar stream: files, folders, links, modes.

    Args:
        folder: The folder; its own name and mode are not part of the stream.
        into: Gets the stream.
        owner: Owner of all entries; None: root.
        log: Gets a warning for each entry that is left out: sockets, pipes, devices.
    """

    def entry(member: tarfile.TarInfo) -> tarfile.TarInfo | None:
        if not (member.isreg() or member.isdir() or member.issym() or member.islnk()):
            log.warning("%s/%s is neither file, folder nor link: left out", folder, member.name)
            return None
        user, group = (owner.user, owner.group) if owner else ("0", "0")
        member.uid, member.uname = (int(user), "") if user.isdigit() else (0, user)
        member.gid, member.gname = (int(group), "") if group.isdigit() else (0, group)
        return member

    with tarfile.open(mode="w|", fileobj=cast("IO[bytes]", into), bufsize=_PIECE) as tar:
        for path in sorted(folder.iterdir()):
            tar.add(path, arcname=path.name, filter=entry)


def unpack(source: Readable, folder: Path, *, most: int, log: logging.Logger) -> None:
    """Write a guest's tar stream below a folder, and nowhere else.

    Files and folders are written first and links last, so that nothing is
    written through a link. Links that could lead out of the folder, devices,
    pipes and sockets are left out with a warning. Modes are kept without
    setuid, setgid and sticky; a folder's owner may always read, write and enter it.

    Python's own extraction filters are not used: Python 3.11.3 and older have
    none, and in several later releases they could be bypassed (CVE-2025-4517).

    Args:
        source: The stream.
        folder: An existing folder.
        most: Bytes that all files together may have.
        log: Gets a warning for each entry that is left out.

    Raises:
        RemoteFileError: The stream is no archive, is too large, or names a path
            outside the folder. Entries before it may have been written.
    """
    tree = _Tree(folder=folder, left=most, most=most, log=log)
    metered = _Metered(source)
    try:
        with tarfile.open(mode="r|", fileobj=cast("IO[bytes]", metered), bufsize=_PIECE) as tar:
            for count, member in enumerate(_members(tar, metered)):
                if count >= _MOST_ENTRIES:
                    raise RemoteFileError(f"the tree has more than {_MOST_ENTRIES} entries")
                tree.add(member, _pieces(tar, member, metered))
        while metered.read(_PIECE):
            metered.allow()
    except (tarfile.TarError, ValueError, OverflowError) as error:
        raise RemoteFileError(f"the guest's tar sent no readable archive: {error}") from error
    tree.finish()


def _members(tar: tarfile.TarFile, metered: _Metered) -> Iterator[tarfile.TarInfo]:
    metered.allow()
    while (member := tar.next()) is not None:
        yield member
        # tarfile keeps every member for random access, which a stream does not have.
        cast("Any", tar).members.clear()
        metered.allow()


def _pieces(tar: tarfile.TarFile, member: tarfile.TarInfo, metered: _Metered) -> Iterator[bytes]:
    file = tar.extractfile(member) if member.isreg() else None
    while file and (piece := file.read(_PIECE)):
        metered.allow()
        yield piece


class _Metered:
    """A source with a limit of bytes for each step of the parser; ``allow()`` begins the next step."""

    def __init__(self, source: Readable) -> None:
        self._source = source
        self._left = _STEP

    def allow(self) -> None:
        self._left = _STEP

    def read(self, size: int) -> bytes:
        data = self._source.read(size)
        self._left -= len(data)
        if self._left < 0:
            raise RemoteFileError("the guest's tar sent a header that is too long")
        return data


@dataclass(kw_only=True)
class _Tree:
    """The entries that are unpacked below a folder."""

    folder: Path
    left: int
    most: int
    log: logging.Logger
    modes: dict[Path, int] = field(default_factory=dict[Path, int])
    links: list[tuple[tuple[str, ...], str]] = field(default_factory=list[tuple[tuple[str, ...], str]])

    def add(self, member: tarfile.TarInfo, data: Iterator[bytes]) -> None:
        parts = _parts(member.name)
        if not parts:
            return
        if member.isdir():
            self.modes[self._enter(parts)] = member.mode
        elif member.isreg():
            self._write(self._place(parts), member.mode, data)
        elif member.islnk():
            self._link(_parts(member.linkname), parts)
        elif member.issym():
            self.links.append((parts, member.linkname))
        else:
            self._leave_out(parts, "is neither file, folder nor link")

    def finish(self) -> None:
        for parts, target in self.links:
            if _stays_inside(len(parts) - 1, target):
                self._place(parts).symlink_to(target)
            else:
                self._leave_out(parts, f"is a link that may lead out of the tree, to {target[:200]!r}")
        for path, mode in self.modes.items():
            path.chmod(stat.S_IRWXU | mode & 0o777)

    def _write(self, path: Path, mode: int, data: Iterator[bytes]) -> None:
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
        with os.fdopen(handle, "wb") as file:
            for piece in data:
                self.left -= len(piece)
                if self.left < 0:
                    raise RemoteFileError(
                        f"the tree holds more than {self.most} bytes", resolution="raise max_bytes="
                    )
                file.write(piece)
            os.fchmod(file.fileno(), mode & 0o777)

    def _link(self, source: tuple[str, ...], parts: tuple[str, ...]) -> None:
        original = self._enter(source[:-1]) / source[-1] if source else self.folder
        if not stat.S_ISREG(original.lstat().st_mode):
            raise RemoteFileError(f"the guest's tar links {'/'.join(parts)[:200]!r} to what is no file")
        os.link(original, self._place(parts), follow_symlinks=False)

    def _place(self, parts: tuple[str, ...]) -> Path:
        """Return the path of a new entry; remove what is there, unless it is a folder."""
        path = self._enter(parts[:-1]) / parts[-1]
        with contextlib.suppress(FileNotFoundError):
            path.unlink()
        return path

    def _enter(self, parts: tuple[str, ...]) -> Path:
        """Return the path of a folder below, and make missing folders; never follow a link."""
        path = self.folder
        for part in parts:
            path /= part
            with contextlib.suppress(FileExistsError):
                path.mkdir(mode=0o700)
            if not stat.S_ISDIR(path.lstat().st_mode):
                raise RemoteFileError(f"{path}: is in the way: a folder is to be written there")
        return path

    def _leave_out(self, parts: tuple[str, ...], why: str) -> None:
        path = "/".join(parts).encode(errors="surrogateescape")
        self.log.warning("%s %s: left out", for_terminal(path), why)


def _parts(name: str) -> tuple[str, ...]:
    parts = tuple(part for part in name.split("/") if part not in ("", "."))
    if name.startswith("/") or ".." in parts or "\0" in name:
        raise RemoteFileError(f"the guest's tar names a path outside the folder: {name[:200]!r}")
    return parts


def _stays_inside(depth: int, target: str) -> bool:
    """Say whether a link that is ``depth`` folders down cannot lead out, whatever other links there are.

    A target may have ``..`` only at its beginning, and at most ``depth`` times.
    From a folder that is really ``depth`` down, such a target goes up at most to
    the top and then only down, through links that obey the same rule. ``..`` after
    a name cannot be judged without following other links.
    """
    parts = [part for part in target.split("/") if part not in ("", ".")]
    ups = next((at for at, part in enumerate(parts) if part != ".."), len(parts))
    return not target.startswith("/") and "\0" not in target and ups <= depth and ".." not in parts[ups:]
