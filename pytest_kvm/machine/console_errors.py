"""Recognises on the console that a boot has failed, and why.

This ends a wait early: a guest that has panicked will never answer SSH.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from dataclasses import dataclass

from pytest_kvm.errors import BootFailed, EmergencyMode, KernelPanicked, NoBootableDevice
from pytest_kvm.machine.console import Console, ConsoleReader


@dataclass(frozen=True, kw_only=True)
class Symptom:
    """A text that a guest prints when it cannot go on."""

    pattern: re.Pattern[str]
    error: type[BootFailed]
    says: str
    """What it means, as the first line of a report."""
    resolution: str


def _symptom(pattern: str, error: type[BootFailed], says: str, resolution: str) -> Symptom:
    return Symptom(pattern=re.compile(pattern, re.MULTILINE), error=error, says=says, resolution=resolution)


_ROOT = "compare root= of the kernel command line with the disks of the spec"
_UNITS = "the failed unit is named on the console above; 'systemctl --failed' would list it"
_DISK = "the image must hold a boot loader for the spec's firmware (bios or uefi)"

SYMPTOMS = (
    _symptom(
        r"Kernel panic - not syncing",
        KernelPanicked,
        "the kernel panicked",
        "the lines before the panic say why",
    ),
    # tiny-initramfs prints the reason, and on the next line that the kernel will panic when it exits
    _symptom(
        r"[^\n]*\n[^\n]*Will cause kernel panic in \d+s",
        KernelPanicked,
        "the initrd gave up",
        "compare root= and init= of the kernel command line with what the image holds",
    ),
    # systemd's emergency.service and sulogin(8)
    _symptom(
        r"You are in (?:emergency|rescue) mode|(?:Give root password|Press Enter) for maintenance"
        r"|Cannot open access to console, the root account is locked",
        EmergencyMode,
        "init gave up and entered emergency mode",
        _UNITS,
    ),
    # dracut(8), initramfs-tools(7), and any other initrd that prints these words
    _symptom(
        r"dracut:/# |Entering emergency mode\. Exit the shell|Dropping to a shell!|^\(initramfs\) ",
        EmergencyMode,
        "the initrd could not reach the root file system",
        _ROOT,
    ),
    # SeaBIOS (src/boot.c), OVMF (BdsDxe), EDK II shell, GRUB
    _symptom(
        r"No bootable device\.|Boot failed: not a bootable disk",
        NoBootableDevice,
        "the BIOS found nothing to boot",
        _DISK,
    ),
    _symptom(
        r"BdsDxe: No bootable option or device was found|UEFI Interactive Shell",
        NoBootableDevice,
        "the UEFI firmware found nothing to boot",
        _DISK,
    ),
    _symptom(
        r"grub rescue> ",
        NoBootableDevice,
        "GRUB could not find its own files",
        "the boot loader is there but its partition is not: was the image cut short?",
    ),
)

STUCK = _symptom(
    r"Waiting for \S+ to appear", EmergencyMode, "the initrd waits for a root device that never comes", _ROOT
)
"""A symptom only if it stays the last line for ``_STUCK_AFTER`` seconds: a healthy boot prints more."""
_STUCK_AFTER = 20.0


@dataclass(frozen=True, kw_only=True)
class Finding:
    """A symptom, and the console's text in which it was found."""

    symptom: Symptom
    text: str
    """The whole line, or lines, that matched."""

    @property
    def line(self) -> str:
        """The text as one line, cut to what a message's first line can hold."""
        return " ".join(self.text.split())[:300]

    @property
    def last_line(self) -> str:
        """The last line of the text, as it stands on the console."""
        return self.text.rpartition("\n")[2].strip()


class ConsoleWatch:
    """Searches a console for symptoms; each look reads what was printed since the look before.

    Args:
        console: The guest's console.
        since: Offset to start at; earlier output belongs to an earlier boot.
        clock: Monotonic seconds.
    """

    def __init__(
        self, console: Console, *, since: int = 0, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._reader: ConsoleReader = console.follow(since=since)
        self._clock = clock
        self._spoke = clock()
        self._found: Finding | None = None

    def look(self) -> Finding | None:
        """Return the symptom that was found, once its line is complete or no output follows."""
        fresh = False
        for window in self._reader.windows():
            fresh = True
            found = _search(window)
            if found is not None:
                self._found = found
        if fresh:
            self._spoke = self._clock()
        elif self._found is None and self._clock() - self._spoke > _STUCK_AFTER:
            self._found = _stuck(self._reader.last_line)
        return None if fresh and self._found and _may_grow(self._reader, self._found) else self._found


def _search(window: str) -> Finding | None:
    for symptom in SYMPTOMS:
        if match := symptom.pattern.search(window):
            start = window.rfind("\n", 0, match.start()) + 1
            end = window.find("\n", match.end())
            return Finding(symptom=symptom, text=window[start : end if end >= 0 else len(window)].strip())
    return None


def _stuck(last_line: str) -> Finding | None:
    return Finding(symptom=STUCK, text=last_line.strip()) if STUCK.pattern.search(last_line) else None


def _may_grow(reader: ConsoleReader, found: Finding) -> bool:
    """Say whether the line of a symptom may still grow: a panic's reason follows its first words."""
    return bool(found.last_line) and reader.last_line.strip() == found.last_line[-200:]
