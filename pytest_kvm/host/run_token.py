"""Tokens of runs: what a run's folder has in common with processes that do not name the folder."""

from __future__ import annotations

import os
import re
import secrets
from pathlib import Path

TOKEN = re.compile(r"(\d+):(\d+):[0-9a-f]{16}")


def new_run_token() -> str:
    """Return a token of a new run of this process."""
    return f"{os.getpid()}:{_start_of(os.getpid())}:{secrets.token_hex(8)}"


def has_run_ended(token: str) -> bool:
    """Say whether the process of a run has ended; its id may be another process's by now.

    Raises:
        ValueError: It is no token.
        OSError: It cannot be known.
    """
    match = TOKEN.fullmatch(token)
    if match is None:
        raise ValueError(f"{token!r} is no token of a run")
    return _start_of(int(match[1])) != int(match[2])


def _start_of(pid: int) -> int | None:
    """Return when a process was started, in clock ticks since the boot, which no change of the date moves."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return None
    # The second field is the program's name in parentheses, which may hold anything (proc_pid_stat(5)).
    state, *fields = stat.rpartition(b")")[2].split()
    return None if state in (b"Z", b"X") else int(fields[18])
