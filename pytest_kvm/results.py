"""What a finished command left behind, and how its failure is told."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from functools import cached_property

from pytest_kvm.errors import CommandFailed
from pytest_kvm.plaintext import plain

TAIL_LINES = 40
"""Lines of each stream that an error message shows."""
TAIL_BYTES = 8192
"""Bytes of each stream that an error message shows."""
_LABEL_CHARS = 120


@dataclass(frozen=True, kw_only=True, repr=False)
class CommandResult:
    """A command that has ended in a guest.

    The bytes are the truth; ``stdout`` and ``stderr`` decode them when asked,
    because a guest may print anything.
    """

    argv: tuple[str, ...] | str
    """The command as it was given: a list as a tuple, a shell string as it is."""
    exit_code: int
    """Exit status; 128 plus the signal's number when a signal ended it (``sh(1)``).

    -1 when it had not ended: the partial result of a time-out or a lost guest.
    """
    stdout_bytes: bytes = b""
    stderr_bytes: bytes = b""
    duration: float = 0.0
    """Seconds between the request and the end, on the host's clock."""
    guest: str = ""
    """Name of the guest, for messages."""

    @cached_property
    def stdout(self) -> str:
        """Standard output as UTF-8, what is not UTF-8 replaced by U+FFFD."""
        return self.stdout_bytes.decode(errors="replace")

    @cached_property
    def stderr(self) -> str:
        """Standard error as UTF-8, what is not UTF-8 replaced by U+FFFD."""
        return self.stderr_bytes.decode(errors="replace")

    @property
    def ok(self) -> bool:
        """Say whether it exited with 0."""
        return self.exit_code == 0

    def check(self) -> CommandResult:
        """Return the result itself if the command exited with 0.

        Raises:
            CommandFailed: It did not; the message shows both streams' tails.
        """
        if self.ok:
            return self
        raise CommandFailed(
            f"{where(self)}: exit code {self.exit_code} after {self.duration:.1f} s",
            details=streams_of(self),
            result=self,
        )

    def __repr__(self) -> str:
        """One line, as an assertion's explanation shows it."""
        last = for_terminal(self.stderr_bytes[-400:]).strip().rpartition("\n")[2][-100:]
        said = f"; stderr ends {last!r}" if last else ""
        return f"<CommandResult {where(self)}: exit code {self.exit_code}{said}>"


def label(argv: tuple[str, ...] | str) -> str:
    """Return a command on one bounded line, as a person would type it."""
    text = argv if isinstance(argv, str) else shlex.join(argv)
    line = " ⏎ ".join(text.split("\n"))
    line = "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in line)
    return line if len(line) <= _LABEL_CHARS else f"{line[:_LABEL_CHARS]}…"


def where(result: CommandResult) -> str:
    """Return "guest: `command`"."""
    return f"{result.guest}: `{label(result.argv)}`" if result.guest else f"`{label(result.argv)}`"


def streams_of(result: CommandResult) -> str:
    """Return both streams' tails under their names."""
    return "\n".join(
        f"--- {name}{note}\n{text}"
        for name, data in (("stdout", result.stdout_bytes), ("stderr", result.stderr_bytes))
        for text, note in [tail(data)]
    )


def tail(data: bytes) -> tuple[str, str]:
    """Return the end of a stream, and a note if something was left out.

    Control characters but line ends and tabs are left out: what a guest
    printed must not steer the terminal that shows the message.
    """
    if not data:
        return "(empty)", ""
    cut = data[-TAIL_BYTES:]
    lines = for_terminal(cut).rstrip("\n").split("\n")
    whole = len(cut) == len(data) and len(lines) <= TAIL_LINES
    return "\n".join(lines[-TAIL_LINES:]), "" if whole else f" (the end of {len(data)} bytes)"


def for_terminal(data: bytes) -> str:
    """Decode what a guest printed for a terminal: no control characters."""
    return plain(data.decode(errors="replace"))
