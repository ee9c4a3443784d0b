"""What each process of this user has taken of the machine: one file for each, locked as long as it lives.

Whoever reads or writes has the folder for itself for that moment, so that what is
decided on what was read still holds when it is written. A file whose lock is free
counts for nothing, however its process ended, and the next that reads removes it.
"""

from __future__ import annotations

import fcntl
import json
import os
import secrets
import threading
import weakref
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from pytest_kvm.errors import HostError, NoCapacity
from pytest_kvm.host.usable_folder import make_private
from pytest_kvm.waiting import NotYet, wait_until

_FORMAT = 1
_GUARD = "guard"
_GUARD_WITHIN = 30.0
"""Seconds. A turn takes a millisecond, unless its process is stopped."""
_LARGEST = 1024 * 1024
"""Bytes of a file that are read."""


class Register:
    """This process's file among those of all.

    Args:
        folder: Where the files are; made if it is missing. It must be on a local file system.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._path = folder / f"{os.getpid()}-{secrets.token_hex(4)}.json"
        self.lock = threading.RLock()
        """Held during a turn; it keeps other threads of this process away."""
        self._guard = -1
        self._own = -1
        self._written = b""
        self._is_closed = False
        _registers.add(self)

    @contextmanager
    def turn(self) -> Generator[None]:
        """Keep all others away during a block, which must be short.

        Raises:
            HostError: The folder cannot be made, or is open to others.
            NoCapacity: A process that does not go on keeps us away.
        """
        with self.lock:
            if self._guard >= 0:
                raise RuntimeError("a turn within a turn")
            make_private(self._folder, what="the limits folder", flag="--kvm-limits-dir")
            with self._failing_in_words():
                self._guard = _open(self._folder / _GUARD)
            try:
                _lock_in_time(self._guard, self._folder)
                yield
            finally:
                # Closing is not enough: a fork of this process may have the descriptor open, too.
                fcntl.flock(self._guard, fcntl.LOCK_UN)
                os.close(self._guard)
                self._guard = -1

    def others(self) -> list[dict[str, Any]]:
        """Return what the other living processes have written; only in a turn."""
        files = [path for path in sorted(self._folder.glob("*.json")) if path != self._path]
        return [written for path in files if (written := _read(path)) is not None]

    def write(self, content: dict[str, Any]) -> None:
        """Replace what this process has written; only in a turn. After :meth:`close` nothing is written.

        Raises:
            HostError: The disk is full, or the folder is gone.
        """
        if self._is_closed:
            return
        data = json.dumps({"format": _FORMAT, **content}).encode()
        with self._failing_in_words():
            if self._own >= 0 and os.fstat(self._own).st_nlink == 0:  # somebody has removed the file
                os.close(self._own)
                self._own, self._written = -1, b""
            if self._own < 0:
                self._own = _open(self._path)
                fcntl.flock(self._own, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if data != self._written:
                # In place, as the lock is on this file. Nobody reads it meanwhile.
                os.pwrite(self._own, data, 0)
                os.ftruncate(self._own, len(data))
                self._written = data

    @contextmanager
    def _failing_in_words(self) -> Generator[None]:
        try:
            yield
        except OSError as failure:
            raise HostError(
                f"the limits folder {self._folder} cannot be written to: {failure.strerror}",
                resolution="make room there, or choose another with --kvm-limits-dir",
            ) from None

    def close(self) -> None:
        """Remove this process's file."""
        self._is_closed = True
        if self._own < 0:
            return
        with self.turn():
            self._path.unlink(missing_ok=True)
            fcntl.flock(self._own, fcntl.LOCK_UN)
            os.close(self._own)
            self._own = -1

    def forget(self) -> None:
        """Let go in a forked child, whose descriptors would keep the locks after the parent's end."""
        for descriptor in (self._own, self._guard):
            if descriptor >= 0:
                os.close(descriptor)
        self._own = self._guard = -1
        self._is_closed = True
        self.lock = threading.RLock()


def _read(path: Path) -> dict[str, Any] | None:
    """Return what a living process has written; remove the file of a dead one."""
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return _parse(os.pread(descriptor, _LARGEST, 0))
    else:
        path.unlink(missing_ok=True)
        return None
    finally:
        os.close(descriptor)


def _parse(data: bytes) -> dict[str, Any] | None:
    content: dict[str, Any] | None = None
    # Its process has just begun to write it, or is of another version.
    with suppress(ValueError, LookupError, TypeError):
        content = json.loads(data)
        if content is not None and content["format"] == _FORMAT:
            return content
    return None


def _open(path: Path) -> int:
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)


def _lock_in_time(descriptor: int, folder: Path) -> None:
    def take() -> None:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise NotYet("another process has its turn") from None

    wait_until(
        take,
        describe=f"the limits folder {folder}",
        timeout=_GUARD_WITHIN,
        every=0.003,
        error=NoCapacity,
    )


_registers: weakref.WeakSet[Register] = weakref.WeakSet()


def _forget_all() -> None:
    for register in list(_registers):
        register.forget()


os.register_at_fork(after_in_child=_forget_all)
