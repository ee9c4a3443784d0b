"""Find in QEMU's log what QEMU printed before it ended."""

from __future__ import annotations

import os
import re
from contextlib import suppress
from pathlib import Path

_TAIL_BYTES = 16 * 1024
_TAIL_LINES = 10
_LIBVIRT_SAYS = re.compile(
    r"[-\d]+ [:.\d]+\+0000: (starting up libvirt|Domain id=\d+ is tainted|shutting down, reason=)"
)
_REFUSES_STATE = re.compile(
    r"load of migration failed: (?!Cannot allocate memory)"
    r"|while loading VM state"
    r"|the requested snapshot|Snapshot '.*' does not exist"
)
_SIGNALLED = re.compile(r"terminating on signal \d+ from pid (\d+).*")


def tail(log: Path, *, since: int = 0) -> str:
    """Return the last lines that QEMU itself wrote to its log since the log had a size."""
    return "\n".join(_own_lines(log, since=since)[-_TAIL_LINES:])


def size(log: Path) -> int:
    """Return the bytes of a log; zero if there is none."""
    try:
        return log.stat().st_size
    except FileNotFoundError:
        return 0


def foreign_signal(log: Path) -> str:
    """Return what QEMU logged about the signal that ended it; empty if this process sent the signal.

    libvirt reports an end by a signal as a shutdown, whoever sent the signal.
    If the guest has really shut down, libvirt itself sends it, and the embedded
    libvirt is part of this process.
    """
    for line in reversed(_own_lines(log)):
        found = _SIGNALLED.search(line)
        if found:
            return "" if int(found[1]) == os.getpid() else found[0]
    return ""


def refuses_state(said: str) -> bool:
    """Say whether QEMU printed that it cannot load a saved state.

    These messages come from the end of ``process_incoming_migration_co``
    (migration/migration.c) and of ``load_snapshot`` (migration/savevm.c).
    """
    return _REFUSES_STATE.search(said) is not None


def _own_lines(log: Path, *, since: int = 0) -> list[str]:
    """Return the lines that QEMU wrote at the end of a log, without those of libvirt.

    libvirt writes QEMU's command line and some remarks. The command line has
    one argument per line, and a backslash after each argument but the last.
    """
    text = ""
    with suppress(OSError), log.open("rb") as stream:
        end = stream.seek(0, os.SEEK_END)
        begin = since if since <= end else 0  # an ordinary user's libvirt empties the log at each start
        stream.seek(max(begin, end - _TAIL_BYTES))
        text = stream.read(_TAIL_BYTES).decode(errors="replace")
    lines = text.splitlines()
    arguments = [number for number, line in enumerate(lines) if line.endswith("\\")]
    own = lines[arguments[-1] + 2 :] if arguments else lines
    return [line for line in own if line and not _LIBVIRT_SAYS.match(line)]
