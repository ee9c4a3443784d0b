"""Advisory locks between processes; the kernel lets go when the holder dies.

Both kinds are ``flock(2)`` on the same file, so they exclude each other.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import filelock

from pytest_kvm.errors import NoCapacity
from pytest_kvm.waiting import NotYet, wait_until

OnWait = Callable[[str], None]

_POLL = 0.1


@contextmanager
def exclusive(path: Path, *, describe: str, timeout: float, on_wait: OnWait | None = None) -> Iterator[None]:
    """Hold a lock that nobody else holds.

    Args:
        path: The lock file; its folder is made.
        describe: What the holder does, for those who wait ("building debian-13").
        timeout: Seconds to wait for it.
        on_wait: Called once, with who holds it, when it is not free at once.

    Raises:
        NoCapacity: It was not released in time; names the holder.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = filelock.FileLock(path, thread_local=False)
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout:
        if on_wait is not None:
            on_wait(holder(path))
        try:
            lock.acquire(timeout=timeout, poll_interval=_POLL)
        except filelock.Timeout:
            raise _never_released(path, timeout) from None
    try:
        with suppress(OSError):  # on a full disk nobody learns who holds it, that is all
            _note(path).write_text(json.dumps({"pid": os.getpid(), "doing": describe}))
        yield
    finally:
        _note(path).unlink(missing_ok=True)
        lock.release()


@contextmanager
def shared(path: Path, *, timeout: float) -> Iterator[None]:
    """Hold a lock that others may share, and that keeps :func:`exclusive` out.

    Raises:
        NoCapacity: An exclusive holder did not release it within ``timeout`` seconds.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)

    def take() -> None:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            raise NotYet(holder(path)) from None

    try:
        wait_until(take, describe=f"the lock {path}", timeout=timeout, every=_POLL, error=NoCapacity)
        yield
    finally:
        os.close(descriptor)


class Held:
    """A lock on a file that exists, taken without waiting.

    It is on the file, not on its name: whoever takes it has to look whether
    the name still leads to that file (:meth:`is_at`).
    """

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def is_at(self, path: Path) -> bool:
        """Say whether ``path`` is the locked file's name."""
        try:
            return os.path.samestat(path.stat(), os.fstat(self._descriptor))
        except FileNotFoundError:
            return False

    @property
    def released(self) -> bool:
        """Whether it was let go."""
        return self._descriptor < 0

    def share(self) -> None:
        """Turn the exclusive lock into a shared one.

        Not atomic (``flock(2)``): keep those who take it exclusively away by other means.
        """
        fcntl.flock(self._descriptor, fcntl.LOCK_SH)

    def touch(self) -> None:
        """Set the file's times to now."""
        os.utime(self._descriptor)

    def release(self) -> None:
        """Let go; a second time is nothing."""
        if self.released:
            return
        # Not only closed: a fork of this process may have the descriptor, too.
        fcntl.flock(self._descriptor, fcntl.LOCK_UN)
        os.close(self._descriptor)
        self._descriptor = -1


def try_shared(path: Path) -> Held | None:
    """Share the lock of an existing file, or return None when somebody holds it alone.

    Raises:
        FileNotFoundError: There is no such file.
    """
    return _try_lock(path, fcntl.LOCK_SH)


def try_exclusive(path: Path) -> Held | None:
    """Take the lock of an existing file, or return None when somebody holds or shares it.

    Raises:
        FileNotFoundError: There is no such file.
    """
    return _try_lock(path, fcntl.LOCK_EX)


def _try_lock(path: Path, kind: int) -> Held | None:
    descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    return Held(descriptor)


def holder(path: Path) -> str:
    """Say who holds a lock and what for ("pid 4711, building debian-13")."""
    with suppress(OSError, ValueError, KeyError, TypeError):
        note = json.loads(_note(path).read_text())
        return f"pid {note['pid']}, {note['doing']}"
    return "another process"


def _note(path: Path) -> Path:
    # Beside the lock, not in it: taking a lock truncates the file.
    return path.with_name(path.name + ".holder")


def _never_released(path: Path, timeout: float) -> NoCapacity:
    return NoCapacity(
        f"the lock {path} was not released within {timeout:.0f} s; held by {holder(path)}",
        resolution="wait for that process to end, or end it; the lock goes with it",
    )
