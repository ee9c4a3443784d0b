"""The result of a command that was run in a guest, and the texts that messages make of it."""

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

    The output is kept as bytes, because a guest may print anything;
    ``stdout`` and ``stderr`` decode it when they are first read.
    """

    argv: tuple[str, ...] | str
    """The command as it was given: a list as a tuple, a shell string as it is."""
    exit_code: int
    """Exit status; 128 plus the signal's number when a signal ended it (``sh(1)``).

    -1 if the command had not ended: a partial result, after a time-out or when the guest was lost.
    """
    stdout_bytes: bytes = b""
    stderr_bytes: bytes = b""
    duration: float = 0.0
    """Seconds between the request and the end, on the host's clock."""
    guest: str = ""
    """Name of the guest, for messages."""

    @cached_property
    def stdout(self) -> str:
        """Standard output, decoded as UTF-8; bytes that are not UTF-8 become U+FFFD."""
        return self.stdout_bytes.decode(errors="replace")

    @cached_property
    def stderr(self) -> str:
        """Standard error, decoded as UTF-8; bytes that are not UTF-8 become U+FFFD."""
        return self.stderr_bytes.decode(errors="replace")

    @property
    def ok(self) -> bool:
        """Whether the command exited with 0."""
        return self.exit_code == 0

    def check(self) -> CommandResult:
        """Return the result itself if the command exited with 0.

        Raises:
            CommandFailed: The command did not exit with 0; the message shows the end of both streams.
        """
        if self.ok:
            return self
        raise CommandFailed(
            f"{where(self)}: exit code {self.exit_code} after {self.duration:.1f} s",
            details=streams_of(self),
            result=self,
        )

    def __repr__(self) -> str:
        """Return one line, as an assertion's explanation shows it."""
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
    """Return the end of stdout and of stderr, each under its name."""
    return "\n".join(
        f"--- {name}{note}\n{text}"
        for name, data in (("stdout", result.stdout_bytes), ("stderr", result.stderr_bytes))
        for text, note in [tail(data)]
    )


def tail(data: bytes) -> tuple[str, str]:
    """Return the end of a stream, and a note if its beginning was left out.

    Control characters except line ends and tabs are removed: a guest's output
    must not control the terminal that shows the message.
    """
    if not data:
        return "(empty)", ""
    cut = data[-TAIL_BYTES:]
    lines = for_terminal(cut).rstrip("\n").split("\n")
    whole = len(cut) == len(data) and len(lines) <= TAIL_LINES
    return "\n".join(lines[-TAIL_LINES:]), "" if whole else f" (the end of {len(data)} bytes)"


def for_terminal(data: bytes) -> str:
    """Decode a guest's output, and remove control characters so that a terminal can show it."""
    return plain(data.decode(errors="replace"))
