"""A guest's verbs that look at what it shows and type where a person would."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from pytest_kvm.handles import keyboard
from pytest_kvm.handles.booted import Booted
from pytest_kvm.handles.screen import to_png

if TYPE_CHECKING:
    from pytest_kvm.machine.console import Console


class ViewVerbs(Booted):
    """Console, screen, keyboard, journal and kernel log."""

    @property
    def console(self) -> Console:
        """The serial console: its log, and a line to type on."""
        return self.machine.console

    def console_tail(self, lines: int = 40) -> str:
        """Return the console's last lines; empty while the guest is not ready. Never waits or raises."""
        return self._parts.console.tail(lines) if self.state in {"running", "ended"} else ""

    def screenshot(self, path: str | Path | None = None) -> bytes:
        """Return the first screen as PNG, and write it to ``path`` if one is given.

        Raises:
            DomainFailed: The guest has no screen.
        """
        picture = to_png(self._parts.domain.screenshot())
        if path is not None:
            Path(path).write_bytes(picture)
        return picture

    def send_keys(self, *chords: str) -> None:
        """Press keys on the guest's keyboard, one chord after the other.

        Args:
            chords: "enter", "ctrl-alt-f2"; each is pressed and released.

        Raises:
            SpecError: No key has that name.
        """
        for codes in [keyboard.chord(chord) for chord in chords]:
            self.machine.domain.send_keys(codes)

    def type_text(self, text: str) -> None:
        """Type text on the guest's keyboard, as on a US layout.

        Raises:
            SpecError: A character is not on that keyboard.
        """
        for codes in keyboard.typed(text):
            self.machine.domain.send_keys(codes)

    def journal(self, unit: str | None = None, *, since: str | None = None, lines: int | None = None) -> str:
        """Return the journal of this boot.

        Args:
            unit: Only this unit's messages.
            since: As ``journalctl --since`` takes it: "-5min", "12:00:00".
            lines: The last lines only.
        """
        options = {"unit": unit, "since": since, "lines": lines}
        chosen = [f"--{name}={value}" for name, value in options.items() if value is not None]
        return self._as_root(["journalctl", "--boot", "--no-pager", "--output=short-precise", *chosen])

    def dmesg(self) -> str:
        """Return the kernel's log buffer."""
        return self._as_root(["dmesg"])

    def _as_root(self, argv: list[str]) -> str:
        return self.machine.shell.run(argv, user="root").stdout
