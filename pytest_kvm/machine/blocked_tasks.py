"""What a guest's tasks wait for, as its kernel tells it: by the guest agent, or by SysRq.

SysRq (https://docs.kernel.org/admin-guide/sysrq.html) works as long as the kernel
takes interrupts, whatever has become of its processes: from the keyboard
(Alt-SysRq-key), or from the serial line (a break, then the key).
"""

from __future__ import annotations

import re
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from itertools import dropwhile

from pytest_kvm.errors import KvmError, WaitTimeout
from pytest_kvm.hypervisor.protocol import Domain
from pytest_kvm.machine.agent import GuestAgent
from pytest_kvm.machine.console import Console
from pytest_kvm.plaintext import plain
from pytest_kvm.waiting import NotYet, wait_until

_MOST_TASKS = 8
_BLOCKED = r"""
waiting() {
    grep -ls '^State:.D' /proc/[0-9]*/task/[0-9]*/status | while read -r status; do
        grep -qs vfork "${status%/status}/stack" ||
            echo "${status%/status}" $(grep -s ctxt_switches "$status" | tr -dc '0-9\n')
    done
}
first=$(waiting)
[ -n "$first" ] || exit 0
sleep 2
waiting | grep -Fx "$first" | head -n "$1" | while read -r task switches; do
    line=$(timeout -s KILL 2 cat "$task/cmdline" | tr '\0\n' '  ' | cut -c -200)
    echo "task $(cat "$task/comm") (${task##*/}): $line"
    cat "$task/stack"
done
"""
"""Prints the tasks that are in state D and have not run for two seconds, and their stacks.

A task that waits for one disk access after the other runs in between, so its
context switches count up (proc_pid_status(5), proc_pid_stack(5)). A task whose
child has called vfork(2) is in state D, too, and waits for that child alone. A
command line cannot be read while the task has its own memory locked.
"""
_KEYBOARD = {"alt": 56, "sysrq": 99, "9": 10, "w": 17, "l": 38, "t": 20}
"""Keycodes of ``linux/input-event-codes.h``."""
_ANSWERS_WITHIN = 8.0
_DUMPED_WITHIN = 8.0
_MOST_BYTES = 256 * 1024
_MOST_LINES = 80
_LONGEST_LINE = 300
_ANSWER = re.compile(r"\bsysrq: ")
_FORBIDDEN = "sysrq operation is disabled"
_PROCESS = re.compile(r"\btask:(?!.*\bppid: *2\b)")
"""A task that is not the kernel's own: the parent of those is kthreadd, process 2."""
_ADVICE = (
    "its kernel.sysrq forbids a dump of its tasks, which would tell more: allow it by "
    'cmdline_extra="sysrq_always_enabled" or prepare=["sysctl -w kernel.sysrq=1"]'
)


def find_blocked_tasks(domain: Domain, *, patience: float) -> str:
    """Return the tasks that are blocked in the kernel of a guest whose agent answers, and their stacks.

    Args:
        domain: The guest's domain.
        patience: Seconds that an answer of the agent may take, and all of them together.

    Raises:
        AgentError: The agent does not answer, or may run no programs.
        CommandTimeout: The look took too long.
    """
    agent = GuestAgent(domain, timeout=patience)
    return plain(agent.exec(["sh", "-c", _BLOCKED, "sh", f"{_MOST_TASKS}"], check=False).stdout).rstrip()


def dump_tasks(domain: Domain, console: Console) -> str:
    """Have the kernel print what its processors and tasks are at; return what it printed, "" if it is silent.

    First the tasks that are blocked and what the processors do (w and l), then
    one line for each process (t). The console holds everything.

    Raises:
        KvmError: Neither keyboard nor serial line can be used.
    """
    failures: list[KvmError] = []
    for press in _WAYS:
        try:
            # Without it (9: everything is printed on the console) a quiet kernel prints no more than headers.
            if not _answer(domain, console, press, letter="9"):
                continue
        except KvmError as failure:
            failures.append(failure)
            continue
        blocked = _answer(domain, console, press, letter="w")
        if blocked and _FORBIDDEN in blocked[0]:
            return _ADVICE
        running = _answer(domain, console, press, letter="l")
        processes = [each for each in _answer(domain, console, press, letter="t") if _PROCESS.search(each)]
        return "\n".join(line for lines in (blocked, running, processes) for line in lines[:_MOST_LINES])
    if len(failures) == len(_WAYS):
        raise failures[0]
    return ""


_Press = Callable[[Domain, Console, str], None]


def _press_keys(domain: Domain, _console: Console, letter: str) -> None:
    domain.send_keys([_KEYBOARD[key] for key in ("alt", "sysrq", letter)], hold_ms=100)


def _send_break(domain: Domain, console: Console, letter: str) -> None:
    domain.qmp("chardev-send-break", {"id": "charserial0"})
    console.send(letter)


_WAYS: tuple[_Press, ...] = (_press_keys, _send_break)


def _answer(domain: Domain, console: Console, press: _Press, *, letter: str) -> list[str]:
    """Press SysRq and a letter, and return the lines that the kernel prints, once no more follow."""
    begin = size = console.offset()

    def text() -> str:
        is_new_file = console.offset() < begin  # virtlogd(8) starts one at 2 MiB
        return plain(console.read(0 if is_new_file else begin, _MOST_BYTES).decode("utf-8", "replace"))

    def has_begun() -> None:
        if not _ANSWER.search(text()):
            raise NotYet("no answer")

    def is_over() -> None:
        nonlocal size
        before, size = size, console.offset()
        if size != before:
            raise NotYet(f"{size} bytes")

    press(domain, console, letter)
    with suppress(WaitTimeout):
        wait = partial(wait_until, describe="an answer to SysRq")
        wait(has_begun, timeout=_ANSWERS_WITHIN, every=0.1)
        wait(is_over, timeout=_DUMPED_WITHIN, every=0.3)
    lines = [line.rstrip()[:_LONGEST_LINE] for line in text().splitlines() if line.strip()]
    return list(dropwhile(lambda line: not _ANSWER.search(line), lines))
