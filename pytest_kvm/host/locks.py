"""Advisory locks between processes; the kernel releases a lock when its holder dies.

Locks on files are exclusive or shared. Both kinds are ``flock(2)`` on the same file, so
they exclude each other. Locks on names are exclusive.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import socket
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import filelock

from pytest_kvm.errors import NoCapacity

OnWait = Callable[[str], None]

_POLL = 0.1
_HOLDER = ".holder"


@contextmanager
def exclusive(path: Path, *, describe: str, timeout: float, on_wait: OnWait | None = None) -> Iterator[None]:
    """Hold a lock exclusively while the block runs.

    Args:
        path: The lock file; its folder is made if it is missing.
        describe: What this process does meanwhile ("building debian-13"); shown to processes that wait.
        timeout: Seconds to wait for the lock.
        on_wait: Called once with the lock's holder, if the lock is not free at once.

    Raises:
        NoCapacity: The lock was not released in time; the message names the holder.
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
        with suppress(OSError):  # on a full disk the lock works, but its holder stays unknown
            _note(path).write_text(json.dumps({"pid": os.getpid(), "doing": describe}))
        yield
    finally:
        _note(path).unlink(missing_ok=True)
        lock.release()


class HeldLock:
    """A lock on an existing file, taken without waiting.

    The lock is on the file, not on its name. After taking it, check that the
    name still leads to the locked file (:meth:`is_at`).
    """

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        _held.add(self)

    def is_at(self, path: Path) -> bool:
        """Say whether ``path`` still leads to the locked file."""
        try:
            return os.path.samestat(path.stat(), os.fstat(self._descriptor))
        except FileNotFoundError:
            return False

    @property
    def released(self) -> bool:
        """Whether the lock was released."""
        return self._descriptor < 0

    def share(self) -> None:
        """Turn the exclusive lock into a shared one.

        This is not atomic (``flock(2)``): the caller has to make sure by other
        means that no process takes the lock exclusively meanwhile.
        """
        fcntl.flock(self._descriptor, fcntl.LOCK_SH)

    def touch(self) -> None:
        """Set the file's times to now."""
        os.utime(self._descriptor)

    def release(self) -> None:
        """Release the lock; a second call does nothing."""
        if self.released:
            return
        # Closing is not enough: a fork of this process may have the descriptor open, too.
        fcntl.flock(self._descriptor, fcntl.LOCK_UN)
        self.forget()

    def forget(self) -> None:
        """Close the descriptor, which ends the lock only if no other process has it."""
        if not self.released:
            os.close(self._descriptor)
            self._descriptor = -1


def try_shared(path: Path) -> HeldLock | None:
    """Take a shared lock on an existing file; return None if it is locked exclusively.

    Raises:
        FileNotFoundError: There is no such file.
    """
    return _try_lock(path, fcntl.LOCK_SH)


def try_exclusive(path: Path) -> HeldLock | None:
    """Take an exclusive lock on an existing file; return None if it is locked in either way.

    Raises:
        FileNotFoundError: There is no such file.
    """
    return _try_lock(path, fcntl.LOCK_EX)


def _try_lock(path: Path, kind: int) -> HeldLock | None:
    descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    return HeldLock(descriptor)


def try_name(name: str) -> socket.socket | None:
    """Take a lock on a name in this network namespace; return None if it is locked.

    It excludes the processes of all users: it is an abstract socket address (unix(7)).

    Returns:
        What holds the lock: closing it releases the lock.
    """
    found = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    _named.add(found)
    try:
        found.bind(f"\0{name}")
    except OSError as failure:
        found.close()
        if failure.errno != errno.EADDRINUSE:
            raise
        return None
    return found


def locked_names(prefix: str) -> list[str]:
    """Return the names with this prefix that are locked in this network namespace, without the prefix."""
    begin = f"@{prefix}"
    lines = Path("/proc/net/unix").read_text(errors="replace").splitlines()
    words = [line.split(maxsplit=7) for line in lines]
    return [each[7].removeprefix(begin) for each in words if len(each) == 8 and each[7].startswith(begin)]


_named: weakref.WeakSet[socket.socket] = weakref.WeakSet()
_held: weakref.WeakSet[HeldLock] = weakref.WeakSet()


def _forget_all() -> None:
    """Have a forked child keep nothing locked that its parent releases, or leaves when it dies."""
    for name in list(_named):
        name.close()
    for lock in list(_held):
        lock.forget()


os.register_at_fork(after_in_child=_forget_all)


def holder(path: Path) -> str:
    """Return who holds a lock and what for ("pid 4711, building debian-13")."""
    with suppress(OSError, ValueError, KeyError, TypeError):
        note = json.loads(_note(path).read_text())
        return f"pid {note['pid']}, {note['doing']}"
    return "another process"


def of_killed_holders(folder: Path) -> list[Path]:
    """Return the locks in a folder whose holder was killed: nobody has them, and its note is still there."""
    killed: list[Path] = []
    for note in sorted(folder.glob(f"*{_HOLDER}")):
        path = note.with_name(note.name.removesuffix(_HOLDER))
        with suppress(FileNotFoundError):
            if held := try_exclusive(path):
                held.release()
                killed.append(path)
    return killed


def forget_killed_holder(path: Path) -> None:
    """Remove the note of a holder that was killed.

    Raises:
        NoCapacity: Somebody has the lock now.
    """
    with exclusive(path, describe="cleaning up", timeout=0):
        pass  # whoever has had a lock leaves no note


def _note(path: Path) -> Path:
    # A file beside the lock file, as taking a lock truncates the lock file.
    return path.with_name(path.name + _HOLDER)


def _never_released(path: Path, timeout: float) -> NoCapacity:
    return NoCapacity(
        f"the lock {path} was not released within {timeout:.0f} s; held by {holder(path)}",
        resolution="wait for that process to end, or end it; the lock goes with it",
    )
