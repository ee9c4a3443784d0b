"""Waits for units, ports, files, commands and journal lines in a guest.

Most waits are one blocking command in the guest, not a poll over SSH. Each
script below prints what it sees whenever that changes, and ends by itself when
its time is up, so nothing is left running when the host stops listening. The
scripts read the time from ``/proc/uptime``, which needs no process and does not
jump. That time goes on while the host has no processor for the guest, so a
script that has timed out is started again for the time that the guest has lost.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING

from pytest_kvm.errors import CommandTimeout, UnitFailed, WaitTimeout
from pytest_kvm.machine.machine import Machine
from pytest_kvm.machine.watchdog import run_while_alive
from pytest_kvm.results import streams_of
from pytest_kvm.ssh.command_line import Command
from pytest_kvm.waiting import NotYet, time_left, wait_until

if TYPE_CHECKING:
    from pytest_kvm.results import CommandResult

_ONE_CHECK = 1.0
"""Seconds that a command gets at least, even if no time is left."""
_SLACK = 30.0
"""Seconds that the host waits beyond a script's own time-out before it gives the script up."""
_TIMED_OUT, _FAILED = 75, 76
"""Exit codes of the scripts (EX_TEMPFAIL and EX_PROTOCOL of sysexits.h: nothing else uses them)."""
_DETAILS_TIMEOUT = 60.0
_JOURNAL = ("journalctl", "--boot", "--follow", "--lines=all", "--output=cat", "--no-pager")

_LOOP = r"""
up() { read -r up _ </proc/uptime; up=${up%.*}; }
say() { [ "$1" = "$said" ] || { said=$1; printf '%s\n' "$said"; }; }
said= ; up; end=$((up + LIMIT + 1))
while :; do
PROBE
    up; [ "$up" -lt "$end" ] || exit 75
    sleep EVERY
done
"""
_UNIT = r"""
    state=$(systemctl show --property=LoadState,ActiveState,SubState,Result,Job \
        --property=Type,NRestarts,ExecMainStatus,ActiveEnterTimestampMonotonic -- "$1") ||
        { say "$state"; exit 76; }
    number() { number=${state##*"$1="}; number=${number%%[!0-9]*}; }
    # What systemd calls active as soon as it has started it has to stay so for a
    # second, what has been restarted for three.
    stays=0
    case $state in *Type=simple* | *Type=exec* | *Type=idle*) stays=1 ;; esac
    case $state in
        *NRestarts=[1-9]*) stays=3; number NRestarts; again="restarted $number times"; number ExecMainStatus
            [ "$number" = 0 ] || last=$number  # while it runs it has none
            say "$again, last exit status ${last:-0}: $(echo $state)" ;;
        *) say "$(echo $state)" ;;
    esac
    case $state in
        *LoadState=not-found* | *LoadState=masked* | *LoadState=bad-setting* | *LoadState=error*) exit 76 ;;
        *ActiveState=active*) number ActiveEnterTimestampMonotonic; read -r now _ </proc/uptime
            [ $((${now%.*}${now#*.}0000 - ${number:-0})) -lt ${stays}000000 ] || exit 0 ;;
        *ActiveState=failed*) exit 76 ;;
        *ActiveState=inactive*) case $state in *Job=[1-9]*) idle=0 ;; *) idle=$((${idle:-0} + 1)) ;; esac
            # Looked at twice: between two of its starts a unit is idle for a moment.
            [ "$idle" -lt 4 ] || { [ -n "$(systemctl list-jobs --no-legend)" ] || exit 76; } ;;
    esac
"""
_PORT = r"""
    if command -v bash >/dev/null; then
        timeout 3 bash -c 'exec 3<>"/dev/tcp/$1/$2"' bash "$1" "$2" 2>/dev/null
    elif command -v nc >/dev/null; then
        nc -z -w 3 "$1" "$2" 2>/dev/null
    else
        say "neither bash nor nc in the guest"; exit 76
    fi && is=open || is=closed
    say "$is"; [ $is != "$3" ] || exit 0
"""
_FILE = r"""
    if [ -e "$1" ] || [ -L "$1" ]; then is=there; else is=absent; fi
    say "$is"; [ $is != "$2" ] || exit 0
"""


def wait_for_unit(machine: Machine, unit: str, *, timeout: float) -> None:
    """Wait until a systemd unit is active.

    A service that systemd calls active as soon as its process has started must
    have been active for one second; a service that was restarted, for three.

    Raises:
        UnitFailed: The unit failed, cannot be loaded, or is inactive with no
            job queued that could start it; with its status and journal.
        WaitTimeout: The unit was not active after ``timeout`` seconds.
        GuestGone: The guest ended or panicked.
    """
    seen = _loop_in_guest(machine, _UNIT, [unit], what=f"unit {unit}", timeout=timeout, every=0.3)
    if seen is not None:
        raise UnitFailed(
            f"{machine.name}: unit {unit} will not become active: {seen}",
            details=_unit_details(machine, unit),
            resolution="a name without suffix means .service; see the unit's journal above",
        )


def wait_for_port(machine: Machine, port: int, *, host: str, closed: bool, timeout: float) -> None:
    """Wait until a TCP connection from inside the guest succeeds (or fails, with ``closed``).

    Args:
        machine: The guest.
        port: TCP port.
        host: Name or address as the guest sees it.
        closed: Wait until a connection fails.
        timeout: Seconds.

    Raises:
        WaitTimeout: With the last observation.
        GuestGone: The guest ended or panicked.
    """
    wanted = "closed" if closed else "open"
    what = f"port {port} of {host} to be {wanted}"
    seen = _loop_in_guest(machine, _PORT, [host, str(port), wanted], what=what, timeout=timeout, every=0.2)
    if seen is not None:
        raise WaitTimeout(f"{machine.name}: cannot look at port {port}: {seen}")


def wait_for_file(machine: Machine, path: str, *, absent: bool, timeout: float) -> None:
    """Wait until a path exists in the guest (or, with ``absent``, until it is gone).

    Raises:
        WaitTimeout: With the last observation.
        GuestGone: The guest ended or panicked.
    """
    wanted = "absent" if absent else "there"
    _loop_in_guest(machine, _FILE, [path, wanted], what=f"{path} to be {wanted}", timeout=timeout, every=0.1)


def wait_until_succeeds(
    machine: Machine, command: Command, *, user: str | None, timeout: float, every: float = 0.5
) -> CommandResult:
    """Run a command again and again until it exits with 0, and return that result.

    Raises:
        WaitTimeout: The command never succeeded, or hung; with its last exit code and output.
        GuestGone: The guest ended or panicked.
    """
    clock = machine.domain.clock
    begun, last = clock(), ""

    def try_once() -> CommandResult:
        nonlocal last
        left = max(_ONE_CHECK, timeout - (clock() - begun))
        try:
            result = machine.shell.run(command, user=user, timeout=left, check=False)
        except CommandTimeout as late:
            last = late.details
            raise NotYet("it had not ended") from late
        last = streams_of(result)
        return result

    def succeeds() -> CommandResult:
        result = try_once()
        if result.ok:
            return result
        final = (result.stderr.strip() or result.stdout.strip()).rpartition("\n")[2]
        raise NotYet(f"exit code {result.exit_code}: {final[:200]}")

    def wait() -> CommandResult:
        return wait_until(
            succeeds,
            describe=f"{command!r} to succeed in {machine.name}",
            timeout=timeout,
            every=every,
            details=lambda: last,
            log=machine.log,
            clock=clock,
        )

    return run_while_alive(machine, wait, what=f"{command!r} to succeed")


def wait_for_log(
    machine: Machine, pattern: str | re.Pattern[str], *, unit: str | None, timeout: float
) -> str:
    """Wait until a journal line of this boot matches, and return the line.

    Lines that were logged before this call count, too.

    Raises:
        WaitTimeout: None matched.
        GuestGone: The guest ended or panicked.
    """
    regex = re.compile(pattern)
    last = "nothing"

    def matching(lines: Iterator[str]) -> str | None:
        nonlocal last
        for line in lines:
            last = line.rstrip("\n")
            if regex.search(last):
                return last
        return None

    def look(seconds: float) -> str | None:
        limit = max(1, math.ceil(seconds))  # 0 would mean "no limit" to timeout(1)
        argv = ["timeout", str(limit), *_JOURNAL, *([f"--unit={unit}"] if unit else [])]
        with machine.shell.start(argv, user="root") as journal:
            lines = journal.lines(timeout=seconds + _SLACK)
            return run_while_alive(machine, lambda: matching(lines), what=f"/{regex.pattern}/ in the journal")

    for left in time_left(timeout, clock=machine.domain.clock):
        if (line := look(left)) is not None:
            return line
    raise WaitTimeout(
        f"{machine.name}: timed out after {timeout:.0f} s waiting for /{regex.pattern}/ in the journal; "
        f"last seen: {last[:200]}"
    )


def _loop_in_guest(
    machine: Machine, probe: str, arguments: list[str], *, what: str, timeout: float, every: float
) -> str | None:
    """Run a probe in a loop inside the guest.

    Returns:
        None when the probe succeeds; what it saw last when it says that it can never succeed.
    """
    exit_code, errors, seen = _TIMED_OUT, "", "nothing"
    for left in time_left(timeout, clock=machine.domain.clock):
        argv = ["sh", "-c", _loop(probe, limit=left, every=every), "sh", *arguments]
        result = _run_loop(machine, argv, what=what, timeout=left + _SLACK)
        exit_code, errors = result.exit_code, result.stderr
        seen = result.stdout.rstrip("\n").rpartition("\n")[2] or "nothing"
        if exit_code == 0:
            return None
        if exit_code == _FAILED:
            return seen
        if exit_code != _TIMED_OUT:
            break
    raise WaitTimeout(
        f"{machine.name}: timed out after {timeout:.0f} s waiting for {what}; last seen: {seen}",
        details="" if exit_code == _TIMED_OUT else f"the wait itself ended with {exit_code}\n{errors}",
    )


def _loop(probe: str, *, limit: float, every: float) -> str:
    values = {"LIMIT": str(math.ceil(limit)), "EVERY": str(every), "PROBE": probe}
    return re.sub("|".join(values), lambda match: values[match[0]], _LOOP)


def _run_loop(machine: Machine, argv: list[str], *, what: str, timeout: float) -> CommandResult:
    try:
        return run_while_alive(
            machine, lambda: machine.shell.run(argv, timeout=timeout, check=False), what=what
        )
    except CommandTimeout as late:
        raise WaitTimeout(
            f"{machine.name}: hangs: a wait for {what} did not even end at its own time-out",
            details=late.details,
        ) from late


def _unit_details(machine: Machine, unit: str) -> str:
    result = machine.shell.run(
        'systemctl status --no-pager --full --lines=0 -- "$UNIT";'
        ' journalctl --boot --no-pager --lines=40 --unit="$UNIT"',
        env={"UNIT": unit},
        user="root",
        timeout=_DETAILS_TIMEOUT,
        check=False,
    )
    return result.stdout + result.stderr
