"""Suites in pytest processes of their own, which tests disturb, and what they have left at their end."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

from pytest_kvm.host.run_folder import RUNS
from pytest_kvm.host.watcher import processes_of
from pytest_kvm.settings import Settings
from pytest_kvm.waiting import NotYet, wait_until
from tests import other_pytest

FOREIGN = "notes"
"""A folder that tests put among the runs' folders, to see that it stays."""
_WITHIN = 400
"""Seconds that a suite has for what is waited for: all guests of this machine may boot meanwhile."""
_MARK = "SUITE_PROCESS_RUN_DIR"
"""Variable in the environment of a suite's processes: the parent of their runs' folders."""


class SuiteProcess:
    """A suite that runs.

    Args:
        process: Its process.
        output: The file that it writes to.
        run_dir: The parent of its runs' folders, and of nobody else's.
    """

    def __init__(self, process: subprocess.Popen[bytes], output: Path, run_dir: Path) -> None:
        self.process = process
        self.run_dir = run_dir
        self._output = output

    @property
    def output(self) -> str:
        """What it has written."""
        return self._output.read_text(errors="replace")

    def wait_shown(self, text: str) -> None:
        """Wait until it has written something."""

        def look() -> None:
            if text not in self.output:
                assert self.process.poll() is None, self.output[-5000:]
                raise NotYet(self.output[-1000:])

        wait_until(look, describe=text, timeout=_WITHIN, every=0.05)

    def wait_qemu(self) -> None:
        """Wait until one of its QEMUs runs."""

        def look() -> None:
            if not processes_of(self.run_dir):
                raise NotYet("there is none")

        wait_until(look, describe="QEMU", timeout=_WITHIN, every=0.02)

    def children(self, module: str) -> list[psutil.Process]:
        """Return its child processes that run a module of the plugin."""
        if self.has_ended:
            return []
        children = psutil.Process(self.process.pid).children()
        return [each for each in children if module in _command_line(each)]

    @property
    def has_ended(self) -> bool:
        """Whether it has ended."""
        return self.process.poll() is not None

    def wait(self, within: float = _WITHIN) -> int:
        """Wait for its end and return its exit code."""
        try:
            return self.process.wait(timeout=within)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"it still runs after {within} s\n{self.output[-5000:]}") from None

    def kill(self) -> float:
        """Kill it hard; return after how many seconds none of its processes was left but its watcher."""
        below = [] if self.has_ended else psutil.Process(self.process.pid).children(recursive=True)
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()
        killed = time.monotonic()

        def look() -> None:
            alive = [each for each in below if _is_at_work(each)]
            qemus = processes_of(self.run_dir)
            if alive or qemus:
                raise NotYet(f"{alive}, QEMUs {qemus}")

        wait_until(look, describe="the end of its processes", timeout=60, every=0.02)
        return time.monotonic() - killed

    def wait_gone(self) -> None:
        """Wait until nothing is left of it."""
        wait_until(lambda: check_gone(self.run_dir), describe="nothing left", timeout=60)


def run_command(*arguments: str, within: Sequence[str] = ()) -> tuple[int, str]:
    """Return exit code and output of pytest-kvm.

    Args:
        arguments: For it.
        within: See :meth:`Suites.start`.
    """
    program = Path(sys.executable).with_name("pytest-kvm")
    finished = subprocess.run(
        [*within, program, *arguments],
        env=other_pytest.environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    return finished.returncode, finished.stdout


def check_gone(run_dir: Path) -> None:
    """Raise NotYet while a file or a process of a run is there.

    Args:
        run_dir: The parent of the runs' folders.
    """
    runs = run_dir / RUNS
    left = [path.name for path in (runs.iterdir() if runs.exists() else ())]
    files = sorted({*left} - {"guard", FOREIGN})
    running = [*processes_of(run_dir), *_marked(run_dir)]
    if files or running:
        raise NotYet(f"files {files}, processes {running}")


def _marked(run_dir: Path) -> list[int]:
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if process.environ().get(_MARK) == str(run_dir) and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process.pid)
    return found


def _is_at_work(process: psutil.Process) -> bool:
    """Say whether a process holds anything, and is not the watcher, which removes what is left."""
    with suppress(psutil.NoSuchProcess):
        return process.status() != psutil.STATUS_ZOMBIE and "host.watcher" not in _command_line(process)
    return False


def _command_line(process: psutil.Process) -> str:
    with suppress(psutil.NoSuchProcess):
        return " ".join(process.cmdline())
    return ""


class Suites:
    """Starts suites.

    Args:
        folder: Of the suites.
        run_dir: The parent of their runs' folders.
        settings: Say which cache they use, and with whom they share this machine.
    """

    def __init__(self, folder: Path, *, run_dir: Path, settings: Settings) -> None:
        self.run_dir = run_dir
        self._folder = folder
        self._settings = settings
        self._started: list[SuiteProcess] = []

    def start(self, source: str, *arguments: str, within: Sequence[str] = ()) -> SuiteProcess:
        """Start a suite and return at once.

        Args:
            source: Its tests.
            arguments: For pytest.
            within: A command that becomes (execve(2)) the command that it is given.
        """
        folder = self._folder / f"suite{len(self._started)}"
        folder.mkdir()
        (folder / "test_it.py").write_text(source)
        (folder / "pytest.ini").write_text("[pytest]\n")
        argv = other_pytest.arguments(
            cache=self._settings.cache_dir, run_dir=self.run_dir, limits=self._settings.limits_folder
        )
        output = folder / "output"
        with output.open("w") as sink:
            process = subprocess.Popen(
                [*within, sys.executable, *argv, "-v", "-s", *arguments],
                cwd=folder,
                env={**other_pytest.environment(), _MARK: str(self.run_dir)},
                stdin=subprocess.DEVNULL,
                stdout=sink,
                stderr=sink,
            )
        self._started.append(SuiteProcess(process, output, self.run_dir))
        return self._started[-1]

    def end(self) -> None:
        """Kill those that run."""
        for each in self._started:
            each.process.kill()
            each.process.wait()


@contextmanager
def suites_in(folder: Path, *, run_dir: Path, settings: Settings) -> Iterator[Suites]:
    """Yield a starter of suites, and see at the end that nothing is left of them.

    Args:
        folder: Of the suites.
        run_dir: The parent of their runs' folders; its path has to be short.
        settings: See :class:`Suites`.
    """
    suites = Suites(folder, run_dir=run_dir, settings=settings)
    try:
        yield suites
    finally:
        suites.end()
        wait_until(lambda: check_gone(run_dir), describe="nothing left", timeout=60)
