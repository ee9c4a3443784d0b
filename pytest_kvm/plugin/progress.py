"""Shows what long work is doing: one live line on a terminal, a line a phase elsewhere."""

from __future__ import annotations

import logging
import os
import shutil
import sys
import threading
import time
from contextlib import suppress
from typing import Protocol, TextIO, cast

import pytest

from pytest_kvm.plaintext import plain

_log = logging.getLogger("pytest_kvm.progress")
_EVERY = 0.5
_SCREEN = pytest.StashKey["Screen"]()


class Listener(Protocol):
    """Is told what a guest (or an image) is at."""

    def phase(self, subject: str, phase: str) -> None:
        """Say that ``subject`` has entered ``phase``."""
        ...

    def finished(self, subject: str, outcome: str) -> None:
        """Say that ``subject`` is done and how it ended."""
        ...


class Silent:
    """Shows nothing: xdist workers, whose output nobody sees."""

    def phase(self, subject: str, phase: str) -> None:
        """Ignore it; the log has it."""

    def finished(self, subject: str, outcome: str) -> None:
        """Ignore it; the log has it."""


class Screen:
    """Where pytest reports to, also while it captures what tests print.

    Guests boot while fixtures run; what is written to standard output then is
    taken for theirs.

    Args:
        reporter: pytest's own, for what it has left unfinished on the line.
        output: The real standard output.
    """

    def __init__(self, reporter: pytest.TerminalReporter, output: TextIO) -> None:
        self._reporter = reporter
        self._output = output
        self._lost = False

    @property
    def isatty(self) -> bool:
        """Whether somebody watches."""
        return bool(self._reporter.isatty)

    def ensure_newline(self) -> None:
        """End the line that names the running test."""
        if self._reporter.currentfspath:
            self.write("\n")
            self._reporter.currentfspath = None

    def write(self, text: str) -> None:
        """Write at once, until that fails: progress that nobody can see is no reason to fail a boot."""
        if self._lost:
            return
        try:
            self._output.write(text)
            self._output.flush()
        except (OSError, ValueError) as error:  # a full disk, a reader that has gone, a closed file
            self._lost = True
            _log.warning("progress is not shown any more: %s", error)

    def close(self) -> None:
        """Let go of the output, with what could not be written to it."""
        with suppress(OSError):
            self._output.close()


class Lines:
    """One line per phase, for logs."""

    def __init__(self, screen: Screen) -> None:
        self._screen = screen
        self._lock = threading.Lock()

    def phase(self, subject: str, phase: str) -> None:
        """Write the phase."""
        self._write(f"kvm: {subject}: {phase}")

    def finished(self, subject: str, outcome: str) -> None:
        """Write the outcome."""
        self._write(f"kvm: {subject}: {outcome}")

    def _write(self, line: str) -> None:
        with self._lock:
            self._screen.ensure_newline()
            self._screen.write(f"{plain(line)}\n")


class LiveLine:
    """One line that is redrawn while anything is under way, and wiped after."""

    def __init__(self, screen: Screen) -> None:
        self._screen = screen
        self._under_way: dict[str, tuple[str, float]] = {}
        self._changed = threading.Condition()
        self._drawing = False

    def phase(self, subject: str, phase: str) -> None:
        """Show the phase from now on."""
        with self._changed:
            started = self._under_way.get(subject, ("", time.monotonic()))[1]
            self._under_way[subject] = (phase, started)
            if not self._drawing:
                self._drawing = True
                threading.Thread(target=self._draw, name="pytest-kvm-progress", daemon=True).start()
            self._changed.notify()

    def finished(self, subject: str, outcome: str) -> None:
        """Stop showing it; what comes next says how it ended."""
        del outcome
        with self._changed:
            self._under_way.pop(subject, None)
            # At once, and not by the thread: the test's own output follows.
            self._show(self._text() if self._under_way else "")
            self._changed.notify()

    def _draw(self) -> None:
        with self._changed:
            self._screen.ensure_newline()
            while self._under_way:
                self._show(self._text())
                self._changed.wait(_EVERY)
            self._drawing = False

    def _text(self) -> str:
        now = time.monotonic()
        parts = [
            f"{name}: {phase} {now - started:.0f} s" for name, (phase, started) in self._under_way.items()
        ]
        return "kvm " + "; ".join(parts)

    def _show(self, text: str) -> None:
        width = shutil.get_terminal_size().columns - 1
        self._screen.write(f"\r\033[2K{' '.join(plain(text).splitlines())[:width]}")


def keep_screen(config: pytest.Config) -> None:
    """Keep the way to the screen, before pytest begins to capture."""
    reporter = config.pluginmanager.getplugin("terminalreporter")
    if reporter is None or hasattr(config, "workerinput"):
        return
    reporter = cast("pytest.TerminalReporter", reporter)
    try:
        output: TextIO = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8", errors="replace")
    except OSError:  # no file behind it: somebody runs pytest within a program
        config.stash[_SCREEN] = Screen(reporter, sys.stdout)
        return
    config.stash[_SCREEN] = screen = Screen(reporter, output)
    config.add_cleanup(screen.close)


def listener_for(config: pytest.Config) -> Listener:
    """Choose how progress is shown in this session."""
    screen = config.stash.get(_SCREEN, None)
    if screen is None or config.option.verbose < 0:
        return Silent()
    return LiveLine(screen) if screen.isatty else Lines(screen)
