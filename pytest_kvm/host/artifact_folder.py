"""A folder of files that explain a failure: private, bounded, and never in the way.

What cannot be written, or is not to be had, is noted and raises nothing: an
artifact must not become a failure itself.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

from pytest_kvm.errors import KvmError

TEXT_LIMIT = 4 * 1024**2
"""Bytes of one text; of a longer one the end is kept."""
MEMORY, DISKS, FROZEN = DUMPS = ("memory", "disks", "frozen")
"""Folders in it of what is large: a guest's memory, its disks, and the guest as a whole."""
MISSING = "missing.txt"
"""Tells what is not there, or not whole, and why."""
_LONGEST_NOTE = 500


class ArtifactFolder:
    """The folder of one guest. The names in it are chosen by us, never by a guest.

    Args:
        path: The folder, which is made when the first file is written; the one around it has to exist.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.files: list[str] = []
        """What was written, in order."""
        self.missing: list[str] = []
        """What is not there, or not whole, and why: a line each."""

    def note(self, name: str, why: object) -> None:
        """Note that something is not there, or not whole."""
        self.missing.append(" ".join(f"{name}: {why}".split())[:_LONGEST_NOTE])

    def write(self, name: str, content: str | bytes, *, limit: int | None = TEXT_LIMIT) -> None:
        """Write a file; nothing if there is no content.

        Args:
            name: The file's name.
            content: What to write; of what is too long the end is kept.
            limit: Bytes; None: all is kept.
        """
        data = content.encode(errors="replace") if isinstance(content, str) else content
        if limit is not None and len(data) > limit:
            self.note(name, f"the last {limit} of {len(data)} bytes are kept")
            data = data[-limit:]
        if data and self._put(name, data):
            self.files.append(name)

    def write_together(self, name: str, write: Callable[[Path], None]) -> None:
        """Write files that are of use only together into a folder in this one; all of them or none.

        An error of ours or of the system's is noted.

        Args:
            name: The folder's name.
            write: Writes them into a new folder.
        """
        unfinished = self.path / f".{name}.unfinished"
        try:
            self.path.mkdir(mode=0o700, exist_ok=True)
            unfinished.mkdir(mode=0o700)
            try:
                write(unfinished)
                for path in unfinished.iterdir():
                    path.chmod(0o600)
                unfinished.rename(self.path / name)
            except BaseException:
                shutil.rmtree(unfinished, ignore_errors=True)
                raise
        except (KvmError, OSError) as failure:
            self.note(name, failure)
        else:
            self.files.append(f"{name}/")

    def finish(self) -> None:
        """Write down what is missing."""
        if self.missing and self._put(MISSING, ("\n".join(self.missing) + "\n").encode(errors="replace")):
            self.files.append(MISSING)

    def _put(self, name: str, data: bytes) -> bool:
        try:
            with os.fdopen(self._open(name), "wb") as file:
                file.write(data)
        except OSError as failure:
            self.note(name, f"is not written: {failure.strerror}")
            return False
        return True

    def _open(self, name: str) -> int:
        self.path.mkdir(mode=0o700, exist_ok=True)
        return os.open(
            self.path / name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600
        )
