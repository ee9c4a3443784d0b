"""Asks a guest for what its gates forbid: lines of the journal, failed units, core dumps, denials.

The guest is asked over SSH, as root. Not the number of lines is bounded, as a
test may allow any number of them, but their bytes, by the shell's own limit: a
guest that says more than that fails the test, and hides nothing. Neither does a
program that fails: exit codes are checked, and where one of them also means
that there is nothing, what the program has to say.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from pytest_kvm.errors import CommandFailed, GuestError, KvmError
from pytest_kvm.machine import core_dumps
from pytest_kvm.machine.machine import Machine
from pytest_kvm.plaintext import one_line, plain
from pytest_kvm.spec.gates import Gates

_TIMEOUT = 120.0
"""Seconds for one question."""
_LONGEST = 1000
"""Characters of a line or message that are shown."""
_DENIED = re.compile(r"avc: +denied|apparmor=\"DENIED\"")

# systemd-coredump(8) goes on after the process has ended, and coredumpctl(1) reads the journal.
_SETTLE = """
while systemctl --quiet is-active "systemd-coredump@*.service"; do sleep 0.1; done
! command -v journalctl >/dev/null || journalctl --sync || exit
exec date +%s.%N
"""
"""Waits for what the guest still has to write, and tells its time."""

_FAILED_UNITS = ("systemctl", "list-units", "--failed", "--no-legend", "--plain", "--no-pager")

# https://www.freedesktop.org/software/systemd/man/latest/journalctl.html
_JOURNAL = (
    *("journalctl", "--quiet", "--no-pager", "--all", "--output=json"),
    "--output-fields=MESSAGE,SYSLOG_IDENTIFIER,_COMM,SYSLOG_PID,_PID",
)

# auditd(8) takes records from the kernel, which prints them no more; journald has them only if it asks, too.
_AUDIT_LOG = r"""
systemctl --quiet is-active auditd.service || exit 0
file=$(sed -n 's/^[[:space:]]*log_file[[:space:]]*=[[:space:]]*//p' /etc/audit/auditd.conf) || exit
awk -v since="$1" '
    match($0, /audit\([0-9.]+/) && substr($0, RSTART + 6, RLENGTH - 6) + 0 >= since
' "${file:-/var/log/audit/audit.log}"
"""


@dataclass(frozen=True, kw_only=True)
class Breach:
    """What one gate has found in one guest, or why the guest could not be asked."""

    guest: str
    """The guest's name."""
    what: str
    """In words: "failed units"."""
    lines: Sequence[str]
    """What was found, clean and cut, without what is allowed; messages can have several lines."""
    can_be_allowed: bool = True
    """False if the guest could not be asked."""


def find_breaches(machine: Machine, gates: Gates, *, since: float) -> list[Breach]:
    """Return what a guest shows though its gates forbid it.

    A guest that cannot be asked has a breach, too; it is not asked anything more.

    Args:
        machine: The guest's machine.
        gates: What to ask for.
        since: When the test began, by the host's monotonic clock.
    """
    found: list[Breach] = []
    try:
        for what, shown, allowed in _shown(machine, gates, since=since):
            patterns = [re.compile(pattern) for pattern in allowed]
            left = [each for each in shown if not any(pattern.search(each) for pattern in patterns)]
            if left:
                found.append(Breach(guest=machine.name, what=what, lines=list(map(_cut, left))))
    except KvmError as failure:
        what, why = "its gates cannot be looked at", _cut(_reason(failure))
        found.append(Breach(guest=machine.name, what=what, lines=[why], can_be_allowed=False))
    return found


def _shown(machine: Machine, gates: Gates, *, since: float) -> Iterator[tuple[str, list[str], Sequence[str]]]:
    """Yield, for each gate that is on, what it is for, what the guest shows, and what is allowed."""
    if gates.failed_units:
        yield "failed units", _lines(machine, _FAILED_UNITS), gates.allow_failed_units
    if gates.journal is None and not gates.core_dumps and not gates.avc:
        return
    begun = _by_its_clock(machine, since)
    if gates.journal is not None:
        messages = _journal(machine, f"--priority={gates.journal}", since=begun)
        yield f"messages of priority {gates.journal} in its journal", messages, gates.allow_journal
    if gates.core_dumps:
        yield (
            "core dumps",
            _lines(machine, ("sh", "-c", core_dumps.SCRIPT, "sh", begun, "list")),
            gates.allow_core_dumps,
        )
    if gates.avc:
        logged = _journal(machine, "_TRANSPORT=kernel", "+", "_TRANSPORT=audit", since=begun)
        logged += _lines(machine, ("sh", "-c", _AUDIT_LOG, "sh", begun))
        yield "denials", [each for each in logged if _DENIED.search(each)], gates.allow_avc


def _by_its_clock(machine: Machine, moment: float) -> str:
    """Return a moment of the host's monotonic clock by the guest's clock, in seconds.

    It is early by the time that the guest's answer takes to come, and never late.
    """
    now = " ".join(_lines(machine, ("sh", "-c", _SETTLE)))
    try:
        return f"{float(now) - (time.monotonic() - moment):.3f}"
    except ValueError:
        raise GuestError(f"{machine.name}: date(1) tells no time: {now}") from None


def _journal(machine: Machine, *matches: str, since: str) -> list[str]:
    """Return the messages of the journal, each with its time in UTC and who has logged it."""
    entries = _lines(machine, (*_JOURNAL, f"--since=@{since}", *matches))
    try:
        return [_message(json.loads(entry)) for entry in entries]
    except (AttributeError, LookupError, TypeError, ValueError) as failure:
        raise GuestError(f"{machine.name}: journalctl(1) has written what is no entry: {failure}") from None


def _message(entry: dict[str, Any]) -> str:
    # https://systemd.io/JOURNAL_EXPORT_FORMATS/: what is not UTF-8, or not printable, is a list of bytes.
    message: str | list[int] = entry.get("MESSAGE") or ""
    text = message if isinstance(message, str) else bytes(message).decode(errors="replace")
    at = datetime.fromtimestamp(int(entry["__REALTIME_TIMESTAMP"]) / 1e6, UTC)
    program = entry.get("SYSLOG_IDENTIFIER") or entry.get("_COMM") or "?"
    pid = entry.get("SYSLOG_PID") or entry.get("_PID")
    return plain(f"{at:%H:%M:%S.%f} {program}{f'[{pid}]' if pid else ''}: {text.rstrip()}")


def _lines(machine: Machine, command: Iterable[str]) -> list[str]:
    result = machine.shell.run(list(command), user="root", timeout=_TIMEOUT)
    lines = (one_line(line.strip()) for line in result.stdout.split("\n"))
    return [line for line in lines if line]


def _cut(text: str) -> str:
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}…"


def _reason(failure: KvmError) -> str:
    if not isinstance(failure, CommandFailed):
        return failure.brief
    *_, last = failure.result.stderr.strip().split("\n")
    return f"{failure.brief}: {one_line(last)}" if last else failure.brief
