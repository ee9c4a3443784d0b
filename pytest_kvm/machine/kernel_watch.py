"""Watches one machine's kernel: finds the reports that it prints on its console, or writes to its log."""

from __future__ import annotations

import logging
import re
import time
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Literal

from pytest_kvm.errors import WaitTimeout
from pytest_kvm.hypervisor.protocol import Domain
from pytest_kvm.machine.console import Console
from pytest_kvm.machine.kernel_log import KernelLog
from pytest_kvm.machine.kernel_reports import FoundReport, KernelReport, find_reports, has_stamps
from pytest_kvm.machine.processor_time import ProcessorTime
from pytest_kvm.waiting import NotYet, wait_until

_log = logging.getLogger("pytest_kvm.kernel")

_MOST_CONSOLE = 8 * 1024 * 1024
"""Bytes of a console that are searched at a time; of more, the last ones."""
_LONGEST_LINE = 4096
_LINUX_VERSION = re.compile(
    rb"^\[ {0,8}\d{1,9}\.\d{6}\](?:\[ {0,8}[TC]\d{1,9}\])? Linux version ", re.MULTILINE
)
_NOT_ASCII = re.compile(r"(?:\\x[0-9a-f]{2}|[^ -~])+")
"""Bytes that a console shows as they are, and the log as escapes."""
_END_WITHIN = 2.0
"""Seconds to wait for the end of a report that the kernel is still printing."""


@dataclass(frozen=True, kw_only=True)
class _Change:
    """What has happened to the kernel when the console had come to an offset."""

    offset: int
    kind: Literal["boot", "boot after panic", "restore", "expected panic"]


class KernelWatch:
    """Tells each report once. Whatever is older than :meth:`begin` counts as told.

    Args:
        console: The machine's console.
        domain: The machine's domain.
        patience: Seconds that one answer of its guest agent may take.
    """

    def __init__(self, console: Console, domain: Domain, *, patience: float) -> None:
        self._console = console
        self._name = domain.name
        self._kernel_log = KernelLog(domain, patience=patience)
        self._processor_time = ProcessorTime(domain)
        self.begun_at: float | None = None
        """When the guest was ready, or reset for the last time, by the host's monotonic clock."""
        self._position: int | None = None
        """How far the console was searched; None: the watch has not begun."""
        self._changes: deque[_Change] = deque()
        """Those that the search has not come to yet; the thread of libvirt's events adds boots."""
        self._untold: list[KernelReport] = []
        """Found on the console, and not told yet."""
        self._last: KernelReport | None = None
        """The last report on the console."""
        self._last_logged: KernelReport | None = None
        """The last report in the kernel's log."""
        self._told: set[tuple[str, str]] = set()
        """Time stamps and first lines."""
        self._expects_panic = False
        """Whether this kernel was made to panic: all that it prints is expected."""
        self.has_panicked = False
        """Whether the kernel that runs is known to have panicked."""
        self._has_stamps = False
        domain.on_reset(self._note_boot)

    def begin(self) -> None:
        """Begin to watch a guest that has booted."""
        self.begun_at = time.monotonic()
        self._position = self._console.offset()
        self._changes.clear()
        past = self._console.read(max(0, self._position - _MOST_CONSOLE), _MOST_CONSOLE)
        self._has_stamps = has_stamps(past)
        # A guest can show again what it has printed before, by dmesg(1) for instance.
        self._told = {_key(each.report) for each in find_reports(past)}
        self._kernel_log.skip_to_end()
        self._processor_time.note()

    def go_on_from(self, former: KernelWatch) -> None:
        """Go on where the watch of a machine ended that was started again, with the same console log."""
        self.begun_at = former.begun_at
        self._position = former._position
        self._has_stamps = former._has_stamps
        self._changes.extend(former._changes)
        self._note_boot()
        self._untold, self._last, self._told = former._untold, former._last, former._told
        self._expects_panic = former._expects_panic

    def expect_panic(self, *, since: int) -> None:
        """Expect the panic that the kernel was made to print from an offset on the console on.

        That holds for all else that it prints, until the guest is booted or restored.
        """
        self._changes.append(_Change(offset=since, kind="expected panic"))

    def _note_boot(self) -> None:
        """Note that the guest was reset: what the console shows from now on is another kernel's."""
        self._changes.append(_Change(offset=self._console.offset(), kind="boot"))

    def note_restore(self) -> None:
        """Note that the guest was restored: what the console shows from now on is the kernel's of then.

        What it has printed before is told by the next look.
        """
        self.read_console()
        self._changes.append(_Change(offset=self._console.offset(), kind="restore"))
        self._kernel_log.note_restore()
        self._processor_time.restart()

    def note_undone(self) -> None:
        """Note that the guest was reset, so what it has shown by now is of those whose changes are undone."""
        self.begun_at = time.monotonic()
        self.skip_console()

    def skip_console(self) -> None:
        """Tell nothing of what the console shows by now."""
        self.read_console()
        self._told |= set(map(_key, self._untold))
        self._untold.clear()

    def skip_log(self) -> None:
        """Tell nothing of what the kernel's log holds by now, which takes the guest a moment."""
        if not self.has_panicked:
            self._kernel_log.skip_to_end()

    def note_silence(self) -> None:
        """Note that the guest agent does not answer: its log is not read until it is restored or boots."""
        self._kernel_log.note_silence()

    def read_console(self) -> None:
        """Search what the console shows by now; the next look tells what was found."""
        if self._position is not None:
            self._untold += map(self._with_excuse, self._search_console())

    def look(self) -> list[KernelReport]:
        """Return the new reports, on the console and in the kernel's log."""
        if self._position is None:
            return []
        self.read_console()
        on_console, self._untold = self._untold, []
        if on_console and not self.has_panicked:
            # A console shows what programs write to /dev/kmsg as it shows the kernel's own text.
            of_programs = self._kernel_log.stamps_of_programs()
            on_console = [each for each in on_console if each.stamp not in of_programs]
        logged: list[KernelReport] = []
        if not self.has_panicked:
            logged = [self._with_excuse(each) for each in self._search_log()]
            self._processor_time.note()
        return [each for each in _merge(on_console, logged) if self._is_new(each)]

    def _with_excuse(self, report: KernelReport) -> KernelReport:
        return replace(report, excuse=self._processor_time.excuse(report))

    def _is_new(self, report: KernelReport) -> bool:
        """Say whether a report was not told yet: console and log show the same ones."""
        key = _key(report)
        if report.stamp and key in self._told:
            return False
        self._told.add(key)
        return True

    def _search_log(self) -> list[KernelReport]:
        """Return the reports that the kernel has logged since the last call."""
        found = find_reports(self._kernel_log.read_new(), stamps=True, former=self._last_logged)
        if found:
            self._last_logged = found[-1].report
        return [each.report for each in found]

    # ------------------------------------------------------------ the console

    def _search_console(self) -> list[KernelReport]:
        """Return the reports that the console shows since the last call, and that nobody expects."""
        start = self._start()
        changes = self._new_changes(is_new_file=start < (self._position or 0))
        text = self._whole_lines(start)
        found = self._find(text)
        if found and not found[-1].is_complete:
            self._wait_for_silence()
            text = self._whole_lines(start)
            found = self._find(text)
        self._position = start + len(text)
        self._has_stamps = self._has_stamps or has_stamps(text)
        # kexec(8) resets no machine, but a kernel that has panicked prints nothing of the kind any more.
        changes += [
            _Change(offset=start + each.start(), kind="boot after panic")
            for each in _LINUX_VERSION.finditer(text)
        ]
        changes.sort(key=lambda change: change.offset)
        unexpected: list[KernelReport] = []
        for each in found:
            while changes and changes[0].offset <= start + each.offset:
                self._take_in(changes.pop(0))
            self.has_panicked = self.has_panicked or each.report.kind == "panic"
            self._last = each.report
            if not self._expects_panic:
                unexpected.append(each.report)
        for change in changes:
            self._take_in(change)
        return unexpected

    def _take_in(self, change: _Change) -> None:
        if change.kind == "boot after panic" and not self.has_panicked:
            return  # a program shows what the kernel has printed before
        self._expects_panic = change.kind == "expected panic"
        if change.kind == "expected panic":
            return
        self.has_panicked, self._last, self._last_logged = False, None, None
        if change.kind != "restore":
            self._kernel_log.note_boot()
            self._told.clear()

    def _find(self, text: bytes) -> list[FoundReport]:
        return find_reports(text, stamps=self._has_stamps, former=self._last)

    def _start(self) -> int:
        start, end = self._position or 0, self._console.offset()
        if start > end:  # virtlogd(8) starts a new file at 2 MiB
            return 0
        if end - start > _MOST_CONSOLE:
            left_out = end - start - _MOST_CONSOLE
            _log.warning("%s: %d bytes of its console were not searched", self._name, left_out)
            return end - _MOST_CONSOLE
        return start

    def _new_changes(self, *, is_new_file: bool) -> list[_Change]:
        """Return the changes since the last call."""
        changes = [self._changes.popleft() for _ in range(len(self._changes))]
        return [replace(change, offset=0) for change in changes] if is_new_file else changes

    def _whole_lines(self, start: int) -> bytes:
        """Return what the console shows from an offset on, without a last line that is not complete."""
        text = self._console.read(start, _MOST_CONSOLE)
        whole = text.rfind(b"\n") + 1
        return text[:whole] if len(text) - whole < _LONGEST_LINE else text

    def _wait_for_silence(self) -> None:
        """Return when the console has shown nothing new for a moment."""
        size = -1

        def is_silent() -> None:
            nonlocal size
            before, size = size, self._console.offset()
            if size != before:
                raise NotYet(f"{size} bytes")

        with suppress(WaitTimeout):
            wait_until(is_silent, describe="the report's end", timeout=_END_WITHIN, every=0.2)


def _merge(on_console: Sequence[KernelReport], logged: Sequence[KernelReport]) -> list[KernelReport]:
    """Return the reports of both, each once; a console may hide lines of one, such as its trace."""
    whole = {_key(each): each for each in logged}
    merged: list[KernelReport] = []
    for each in on_console:
        other = whole.pop(_key(each), each)
        merged.append(replace(each, text=max(each.text, other.text, key=len)))
    return merged + list(whole.values())


def _key(report: KernelReport) -> tuple[str, str]:
    return report.stamp, _NOT_ASCII.sub("?", report.line)
