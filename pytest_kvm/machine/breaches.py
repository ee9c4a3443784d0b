"""Asks a guest for what its gates forbid: lines of the journal, failed units, core dumps, denials.

The guest is asked over SSH, as root. Not the number of lines is bounded, as a
test may allow any number of them, but their bytes, by the shell's own limit: a
guest that says more than that fails the test, and hides nothing.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from pytest_kvm.errors import CommandFailed, GuestError, KvmError
from pytest_kvm.machine.machine import Machine
from pytest_kvm.plaintext import one_line
from pytest_kvm.spec.gates import Gates

_TIMEOUT = 60.0
"""Seconds for one question."""
_LONGEST_LINE = 300
_DENIED = re.compile(r"avc: +denied|apparmor=\"DENIED\"")

# https://www.freedesktop.org/software/systemd/man/latest/journalctl.html
_JOURNAL = """
journalctl --sync && exec journalctl --quiet --no-pager --output=short-precise "$@"
"""

_FAILED_UNITS = ("systemctl", "list-units", "--failed", "--no-legend", "--plain", "--no-pager")

# https://man7.org/linux/man-pages/man5/core.5.html and coredumpctl(1), which exits with 1 if it knows none.
_CORE_DUMPS = r"""
since=$1
set -f
read -r pattern </proc/sys/kernel/core_pattern
case $pattern in
    "|"*systemd-coredump*)
        # It goes on after the process has ended.
        while systemctl --quiet is-active "systemd-coredump@*.service"; do sleep 0.1; done
        coredumpctl list --quiet --no-legend --no-pager --since="@$since" || [ $? -eq 1 ]
        exit
        ;;
    "" | "|/bin/false" | "|/usr/bin/false") exit 0 ;;
    "|"*) echo "the kernel hands core dumps to ${pattern%% *}, which cannot be asked for them" >&2; exit 3 ;;
esac
# What the kernel fills in (%p, %e, ...) can be any text; %% is a percent sign.
path=$(printf '%s\n' "$pattern" | sed 's/[][*?\\]/\\&/g; s/%%/\r/g; s/%.\{0,1\}/*/g; s/\r/%/g')
folder=${pattern%%%*}
case $pattern in
    /*) folders=${folder%/*}/ ;;
    *)
        # Relative to the folder that the process was in, which can be anywhere.
        path="*/$path"
        folders=$(awk '$3 ~ /^(ext[234]|xfs|btrfs|f2fs|overlay|tmpfs)$/ { print $2 }' /proc/mounts)
        ;;
esac
name=${path##*/}
found=$(for folder in $folders; do
    [ -d "$folder" ] || continue
    # With core_uses_pid a number follows the name. Exit code 1: something was removed meanwhile.
    find "$folder" -xdev -type f -newermt "@$since" -path "$path*" \
        \( -name "$name" -o -name "$name.[0-9]*" \) -ls || [ $? -eq 1 ] || exit
done) || exit
[ -z "$found" ] || printf '%s\n' "$found" | sort -u
"""


@dataclass(frozen=True, kw_only=True)
class Breach:
    """What one gate has found in one guest."""

    guest: str
    """The guest's name."""
    what: str
    """In words: "failed units"."""
    lines: Sequence[str]
    """What was found, clean and cut, without what is allowed; if the guest could not be asked, why."""


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
        for what, lines, allowed in _shown(machine, gates, since=since):
            patterns = [re.compile(pattern) for pattern in allowed]
            left = [line for line in lines if not any(pattern.search(line) for pattern in patterns)]
            if left:
                found.append(Breach(guest=machine.name, what=what, lines=left))
    except KvmError as failure:
        what = "its gates cannot be looked at"
        found.append(Breach(guest=machine.name, what=what, lines=[_reason(failure)]))
    return found


def _shown(machine: Machine, gates: Gates, *, since: float) -> Iterator[tuple[str, list[str], Sequence[str]]]:
    """Yield, for each gate that is on, what it is for, what the guest shows, and what is allowed."""
    if gates.failed_units:
        yield "failed units", _lines(machine, _FAILED_UNITS), gates.allow_failed_units
    if gates.journal is None and not gates.core_dumps and not gates.avc:
        return
    begun = _by_its_clock(machine, since)
    if gates.journal is not None:
        lines = _journal(machine, f"--priority={gates.journal}", since=begun)
        yield f"lines of priority {gates.journal} in its journal", lines, gates.allow_journal
    if gates.core_dumps:
        yield "core dumps", _lines(machine, ("sh", "-c", _CORE_DUMPS, "sh", begun)), gates.allow_core_dumps
    if gates.avc:
        lines = _journal(machine, "_TRANSPORT=kernel", "+", "_TRANSPORT=audit", since=begun)
        yield "denials", [line for line in lines if _DENIED.search(line)], gates.allow_avc


def _by_its_clock(machine: Machine, moment: float) -> str:
    """Return a moment of the host's monotonic clock by the guest's clock, in seconds.

    It is early by the time that the guest's answer takes to come, and never late.
    """
    now = " ".join(_lines(machine, ("date", "+%s.%N")))
    try:
        return f"{float(now) - (time.monotonic() - moment):.3f}"
    except ValueError:
        raise GuestError(f"{machine.name}: date(1) tells no time: {now}") from None


def _journal(machine: Machine, *matches: str, since: str) -> list[str]:
    return _lines(machine, ("sh", "-c", _JOURNAL, "sh", f"--since=@{since}", *matches))


def _lines(machine: Machine, command: Iterable[str]) -> list[str]:
    result = machine.shell.run(list(command), user="root", timeout=_TIMEOUT)
    lines = (one_line(line.strip())[:_LONGEST_LINE] for line in result.stdout.splitlines())
    return [line for line in lines if line]


def _reason(failure: KvmError) -> str:
    if isinstance(failure, CommandFailed):
        return one_line(failure.result.stderr.strip())[:_LONGEST_LINE] or failure.brief
    return failure.brief
