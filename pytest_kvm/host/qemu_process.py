"""Makes QEMU processes children of this process, and collects each the moment it ends.

libvirt daemonises QEMU, so QEMU's parent becomes init. When libvirt stops a
QEMU, it waits for its end by calling ``kill(pid, 0)`` every 200 ms for up to
40 s (``virProcessKillPainfullyDelay`` in libvirt's ``src/util/virprocess.c``).
That call still succeeds for a zombie: where init collects zombies late, or
never (a container whose first process is a test runner), each stop of a QEMU
takes that long. So this process becomes a *child subreaper* (prctl(2)): it gets
to be QEMU's parent instead of init, and collects QEMU, and no other process, the
moment QEMU ends. It is a subreaper only while a QEMU starts. At other times the
processes that the user's tests leave behind go to init, as usual. Daemons that
they leave behind just then become children of this process, too, and are
collected like QEMU when they end.
"""

from __future__ import annotations

import ctypes
import logging
import os
import select
import signal
import threading
from collections.abc import Generator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import psutil

from pytest_kvm.errors import HostError
from pytest_kvm.waiting import NotYet, wait_until

_log = logging.getLogger("pytest_kvm.hypervisor")
_PR_SET_CHILD_SUBREAPER = 36
_PR_GET_CHILD_SUBREAPER = 37
_SCAN_EVERY = 0.02
_LONGEST_START = 3600.0
_MEANINGS: dict[int, str] = {signal.SIGBUS: ": the disk that holds its memory is full, perhaps"}
"""What a signal of the kernel's tells of a QEMU, which maps the file that holds its guest's memory."""


def is_subreaper() -> bool:
    """Say whether orphaned descendants become this process's children.

    Raises:
        HostError: The kernel refused to say (the call exists since Linux 3.4).
    """
    answer = ctypes.c_int()
    _prctl(_PR_GET_CHILD_SUBREAPER, ctypes.byref(answer))
    return bool(answer.value)


def set_subreaper(*, on: bool) -> None:
    """Choose whose children later orphaned descendants become: this process's (``on``), or init's.

    Processes that are this process's children already stay so.

    Raises:
        HostError: The kernel refused.
    """
    _prctl(_PR_SET_CHILD_SUBREAPER, int(on))


def _prctl(option: int, argument: object) -> None:
    if ctypes.CDLL(None, use_errno=True).prctl(option, argument, 0, 0, 0) != 0:
        raise HostError(
            f"prctl({option}): {os.strerror(ctypes.get_errno())}",
            resolution="allow prctl in the seccomp profile of this container",
        )


class HostProcess:
    """A process that is watched until it ends; any process may be its parent.

    It is held by a pidfd (pidfd_open(2)), so that a signal can never reach
    another process that was given the same id later.

    Args:
        pid: Its id.
        began_session: Whether the process that began its session was left by the same program, and is
            to be collected, too.

    Raises:
        ProcessLookupError: There is no such process.
        psutil.NoSuchProcess: The process ended meanwhile.
    """

    def __init__(self, pid: int, *, began_session: bool = True) -> None:
        self.pid = pid
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._code: int | None = None
        with ExitStack() as undo:
            self._pidfd = os.pidfd_open(pid)
            undo.callback(os.close, self._pidfd)
            self._session = os.getsid(pid) if began_session else None
            self.is_our_child = psutil.Process(pid).ppid() == os.getpid()
            """Whether this process is its parent and collects it: no zombie is left once it has ended."""
            threading.Thread(target=self._collect, name=f"kvm-reap-{pid}", daemon=True).start()
            undo.pop_all()  # the thread closes it

    @property
    def ended(self) -> bool:
        """Whether the process has ended, and was collected if it was our child."""
        return self._ended.is_set()

    @property
    def is_stopped(self) -> bool:
        """Whether a signal has stopped the process."""
        if self.ended:
            return False
        with suppress(psutil.Error):
            return psutil.Process(self.pid).status() == psutil.STATUS_STOPPED
        return False

    @property
    def bytes_moved(self) -> int | None:
        """How many bytes the process has read and written (proc_pid_io(5)); None if we may not know."""
        if self.ended:
            return None
        with suppress(psutil.Error):
            counters = psutil.Process(self.pid).io_counters()
            return int(counters.read_chars + counters.write_chars)
        return None

    def wait(self, timeout: float) -> bool:
        """Block until the process ends or ``timeout`` seconds have passed; say whether it has ended."""
        return self._ended.wait(timeout)

    def kill(self) -> None:
        """Send SIGKILL unless the process has ended already.

        Raises:
            PermissionError: The process belongs to another user.
        """
        with self._lock:
            if not self.ended:
                # ProcessLookupError: it was collected, but _collect has not noted its end yet.
                with suppress(ProcessLookupError):
                    signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)

    def how_it_ended(self) -> str:
        """Return how the process ended: "was killed by signal 9 (Killed)", "exited with status 1"."""
        if not self.ended:
            return "is still running"
        if self._code is None:
            return "ended"
        if self._code < 0:
            killed = f"was killed by signal {-self._code} ({signal.strsignal(-self._code)})"
            return f"{killed}{_MEANINGS.get(-self._code, '')}"
        return f"exited with status {self._code}"

    def _collect(self) -> None:
        poll = select.poll()
        poll.register(self._pidfd, select.POLLIN)
        poll.poll()
        with suppress(ChildProcessError):
            _, status = os.waitpid(self.pid, 0)
            self._code = os.waitstatus_to_exitcode(status)
            if self._session is not None:
                # QEMU's own -daemonize leaves a second zombie: the process that began QEMU's session.
                os.waitpid(self._session, os.WNOHANG)
        with self._lock:
            self._ended.set()
            os.close(self._pidfd)


class PidfileWatch:
    """Finds the QEMU processes whose pidfiles appear below a folder, and collects those that end.

    libvirt tells the pid of a QEMU only after QEMU has started. If QEMU fails
    to start, libvirt removes the pidfile only after it has seen QEMU end. The
    zombie must be collected before that (see the module's docstring), so the
    pid has to come from the pidfile.

    Args:
        root: The folder.
        patterns: Where pidfiles may appear, as globs below ``root``.
    """

    def __init__(self, root: Path, patterns: tuple[str, ...]) -> None:
        self._root = root
        self._patterns = patterns
        self._lock = threading.Lock()
        self._users = 0
        self._was_subreaper = False
        self._adopted: dict[Path, HostProcess] = {}
        self._daemons: dict[int, HostProcess] = {}
        """Children that others have started and left behind, by process id."""

    @contextmanager
    def watching(self) -> Generator[None]:
        """Be a child subreaper and look for new pidfiles while the block runs.

        Raises:
            HostError: This process cannot become a subreaper.
        """
        with self._lock:
            if self._users == 0:
                self._was_subreaper = is_subreaper()
                set_subreaper(on=True)
            self._users += 1
            if self._users == 1:
                threading.Thread(target=self._scan_until_idle, name="kvm-pidfiles", daemon=True).start()
        try:
            yield
        finally:
            with self._lock:
                self._users -= 1
                if self._users == 0:
                    set_subreaper(on=self._was_subreaper)
                    self._adopt_daemons()

    def find_child(self, pidfile: str) -> HostProcess | None:
        """Return the process that a pidfile (a path below the root) names, None if it is not our child."""
        self._scan()
        with self._lock:
            return self._adopted.get(self._root / pidfile)

    def _scan_until_idle(self) -> None:
        def idle() -> None:
            self._scan()
            if self._users:
                raise NotYet("a start is under way")

        wait_until(idle, describe="QEMU processes to start", timeout=_LONGEST_START, every=_SCAN_EVERY)

    def _scan(self) -> None:
        for pattern in self._patterns:
            for pidfile in self._root.glob(pattern):
                # A pidfile may still be empty, which the next scan mends, or gone again.
                with suppress(OSError, ValueError, psutil.NoSuchProcess):
                    self._adopt(pidfile, int(pidfile.read_text()))

    def _adopt(self, pidfile: Path, pid: int) -> None:
        with self._lock:
            known = self._adopted.get(pidfile)
            if known is not None and known.pid == pid and not known.ended:
                return
            if psutil.Process(pid).ppid() != os.getpid():
                return
            daemon = self._daemons.pop(pid) if pid in self._daemons else None
            self._adopted[pidfile] = HostProcess(pid) if daemon is None else daemon

    def _adopt_daemons(self) -> None:
        """Have the daemons collected that have become children of this process, when they end.

        A child that this process has started is in its session, or leads one of its own.
        One in a session that another process has led was left behind by that process,
        for whose end a test may wait.
        """
        known = {each.pid for each in self._adopted.values()}
        self._daemons = {pid: each for pid, each in self._daemons.items() if not each.ended}
        for pid in _children():
            try:
                if pid not in known | self._daemons.keys() and os.getsid(pid) not in {os.getsid(0), pid}:
                    self._daemons[pid] = HostProcess(pid, began_session=False)
            except (OSError, RuntimeError, psutil.Error) as problem:  # it has been collected, perhaps
                _log.debug("process %s, which was left behind, is not collected: %s", pid, problem)


def _children() -> list[int]:
    """Return the children of the main thread: whoever is left behind becomes one of them."""
    try:
        listed = Path(f"/proc/self/task/{os.getpid()}/children").read_text(encoding="ascii")
    except FileNotFoundError:  # the kernel was built without it (proc(5)); this takes longer
        return [child.pid for child in psutil.Process().children()]
    return [int(pid) for pid in listed.split()]
