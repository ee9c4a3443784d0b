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


class ProgressListener(Protocol):
    """Is told how far a guest (or an image) has come."""

    def phase(self, subject: str, phase: str) -> None:
        """Say that ``subject`` has entered ``phase``."""
        ...

    def finished(self, subject: str, outcome: str) -> None:
        """Say that ``subject`` is done and how it ended."""
        ...


class Silent:
    """Shows nothing: for xdist workers, whose output is not seen, and for ``--quiet``."""

    def phase(self, subject: str, phase: str) -> None:
        """Do nothing; the log has it."""

    def finished(self, subject: str, outcome: str) -> None:
        """Do nothing; the log has it."""


class Screen:
    """The standard output that pytest reports to, which can be written to while pytest captures.

    Guests boot while fixtures run. pytest would capture what is written to
    ``sys.stdout`` then, and show it as output of the fixtures.

    Args:
        reporter: pytest's terminal reporter, which knows whether its last line is complete.
        output: The real standard output.
    """

    def __init__(self, reporter: pytest.TerminalReporter, output: TextIO) -> None:
        self._reporter = reporter
        self._output = output
        self._lost = False

    @property
    def isatty(self) -> bool:
        """Whether the output is a terminal."""
        return bool(self._reporter.isatty)

    def ensure_newline(self) -> None:
        """End the line on which pytest has named the running test."""
        if self._reporter.currentfspath:
            self.write("\n")
            self._reporter.currentfspath = None

    def write(self, text: str) -> None:
        """Write and flush; after a failure write nothing more, because progress must not fail a boot."""
        if self._lost:
            return
        try:
            self._output.write(text)
            self._output.flush()
        except (OSError, ValueError) as error:  # a full disk, a closed pipe, a closed file
            self._lost = True
            _log.warning("progress is not shown any more: %s", error)

    def close(self) -> None:
        """Close the output; what could not be written is lost."""
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
    """One line that is redrawn while work is under way, and erased afterwards."""

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
        """Stop showing ``subject``; the test's report will say how it ended."""
        del outcome
        with self._changed:
            self._under_way.pop(subject, None)
            # Not left to the thread: the test's own output may follow at once.
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
    """Keep the real standard output, before pytest begins to capture."""
    reporter = config.pluginmanager.getplugin("terminalreporter")
    if reporter is None or hasattr(config, "workerinput"):
        return
    reporter = cast("pytest.TerminalReporter", reporter)
    try:
        output: TextIO = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8", errors="replace")
    except OSError:  # stdout is no file: a program runs pytest within itself
        config.stash[_SCREEN] = Screen(reporter, sys.stdout)
        return
    config.stash[_SCREEN] = screen = Screen(reporter, output)
    config.add_cleanup(screen.close)


def listener_for(config: pytest.Config) -> ProgressListener:
    """Choose how progress is shown in this session."""
    screen = config.stash.get(_SCREEN, None)
    if screen is None or config.option.verbose < 0:
        return Silent()
    return LiveLine(screen) if screen.isatty else Lines(screen)
