"""``pytest-kvm resume`` in a process of its own, and the guest that it lets go on."""

from __future__ import annotations

import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pytest_kvm.settings import Settings
from tests import other_pytest


class ResumedGuest:
    """A guest that goes on.

    Args:
        process: The process that lets it.
    """

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self.greeting, login = self._line(), self._line()
        self._ssh = shlex.split(login.removeprefix("log in:"))
        self.console = Path(self._line().removeprefix("console:").strip())
        assert self._line() == "Ctrl-C removes it\n"

    def run(self, command: str) -> str:
        """Return what a command in the guest prints."""
        finished = subprocess.run(
            [*self._ssh, command], stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
        )
        assert finished.returncode == 0, finished
        return finished.stdout

    def begin(self, command: str) -> None:
        """Begin a command that may end the guest; nobody knows how it ends."""
        subprocess.run(
            [*self._ssh, command], stdin=subprocess.DEVNULL, capture_output=True, check=False, timeout=60
        )

    def interrupt(self) -> str:
        """Press Ctrl-C, and return what is printed then."""
        self.process.send_signal(signal.SIGINT)
        return self.rest()

    def rest(self) -> str:
        """Wait for the end of the process, and return what it has printed since."""
        printed, _ = self.process.communicate(timeout=120)
        assert self.process.returncode == 0, printed
        return printed

    def _line(self) -> str:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, f"it has ended: {self.process.wait()}"
        return line


@contextmanager
def resumed_guest(artifact: Path, *, run_dir: Path, settings: Settings) -> Iterator[ResumedGuest]:
    """Yield the guest of an artifact, once it goes on.

    Args:
        artifact: For the command.
        run_dir: The parent of its run's folder.
        settings: Say which cache it uses, and with whom it shares this machine.
    """
    options = [f"--kvm-run-dir={run_dir}", f"--kvm-cache-dir={settings.cache_dir}"]
    process = subprocess.Popen(
        [Path(sys.executable).with_name("pytest-kvm"), *options, "resume", artifact],
        env={**other_pytest.environment(), "PYTEST_KVM_LIMITS_DIR": str(settings.limits_folder)},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        yield ResumedGuest(process)
    finally:
        process.kill()
        process.communicate()
