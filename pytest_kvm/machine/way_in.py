"""Ways to run programs in the guest of a failed test: by its agent, which needs no network, or by SSH."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, TypeVar

from pytest_kvm.at_once import in_thread
from pytest_kvm.machine.agent import GuestAgent
from pytest_kvm.machine.questions import NoAnswer, Silence, ask
from pytest_kvm.plaintext import one_line

if TYPE_CHECKING:
    from pytest_kvm.machine.machine import Machine
    from pytest_kvm.machine.vitals import Trouble
    from pytest_kvm.results import CommandResult

T = TypeVar("T")

OUTPUT_LIMIT = 4 * 1024**2
"""Bytes of a program's output: libvirt takes 10 MiB of JSON from an agent
(``QEMU_AGENT_MAX_RESPONSE`` in src/qemu/qemu_agent.c), and base64 is a third longer."""
_FIRST_WITHIN = 15.0
"""Seconds for the first program: without KVM a login takes some."""
_LONG = 0.5
"""Seconds after which the clock is asked once more: the answer tells no time if a login is part of it."""
_LAST = 1.0
"""Seconds for a program's result when the time is over: one that has ended meanwhile is not lost."""
_KILLED_AFTER = 5.0
"""Seconds after which a program that was begun by SSH is killed when the time is over."""

_Finish = Callable[[], "CommandResult"]
"""Waits for a program's end, and returns its result; raises :class:`NoAnswer` if there is none."""
_Begin = Callable[[Sequence[str]], _Finish]
"""Begins a program as root, and returns what waits for its end; raises :class:`NoAnswer` if it cannot."""


@dataclass(frozen=True, kw_only=True)
class WayIn:
    """A way to run programs in a guest."""

    begin: _Begin
    clock: float
    """How many seconds the guest's clock is ahead of this host's monotonic clock, at the least."""

    def run(self, argv: Sequence[str]) -> CommandResult:
        """Run a program to its end; its exit code is not checked.

        Raises:
            NoAnswer: Nobody knows how it has ended, or the time is over.
        """
        return self.begin(argv)()


def find_way_in(machine: Machine, trouble: Trouble | None, *, until: float) -> WayIn:
    """Return a way to run programs in a guest.

    Args:
        machine: The guest's machine.
        trouble: What is the matter with it; None: nothing.
        until: When the time is over for all programs, by the monotonic clock.

    Raises:
        NoAnswer: There is none; the text says why.
    """
    reasons: list[str] = []
    for name, begin_until in _ways(machine, trouble):
        try:
            # Some distributions have an agent that answers, and may run nothing.
            first = partial(begin_until, min(until, time.monotonic() + _FIRST_WITHIN))
            took, clock = _ask_clock(first)
            if took > _LONG:
                _, clock = _ask_clock(first)
        except NoAnswer as failure:
            reasons.append(f"{name} {failure}")
        else:
            return WayIn(begin=partial(begin_until, until), clock=clock)
    raise NoAnswer("; ".join(reasons) or "does not answer")


def _ask_clock(begin: _Begin) -> tuple[float, float]:
    """Return how long the guest's answer took, and how far its clock is ahead of this host's at the least.

    Nobody knows when the guest has read its clock before the answer came. If a moment were taken that
    is too early, what a test has logged in its first seconds would be left out.
    """
    asked = time.monotonic()
    said = begin(["date", "+%s %N"])().stdout.strip()
    answered = time.monotonic()
    seconds, _, nanoseconds = said.partition(" ")
    fraction = int(nanoseconds) / 1e9 if nanoseconds.isdecimal() else 0.0  # BusyBox knows no %N
    try:
        return answered - asked, int(seconds) + fraction - answered
    except ValueError:
        raise NoAnswer(f"tells no time: {one_line(said)[:100]!r}") from None


def _ways(machine: Machine, trouble: Trouble | None) -> Iterator[tuple[str, Callable[..., _Finish]]]:
    if trouble is None or trouble.agent_answers:
        yield "its agent", partial(_begin_by_agent, GuestAgent(machine.domain, timeout=_FIRST_WITHIN))
    if trouble is None or trouble.sshd_answers:
        yield "SSH", partial(_begin_by_ssh, machine)


def _begin_by_agent(agent: GuestAgent, until: float, argv: Sequence[str]) -> _Finish:
    pid = _ask_until(until, lambda _left: agent.start(argv))
    return lambda: _ask_until(until, lambda left: agent.finish(argv, pid, timeout=left), at_least=_LAST)


def _begin_by_ssh(machine: Machine, until: float, argv: Sequence[str]) -> _Finish:
    timeout = max(0.0, until - time.monotonic()) + _KILLED_AFTER
    run = partial(machine.shell.run, list(argv), user="root", timeout=timeout, check=False)
    running = in_thread(run)
    return lambda: _ask_until(until, lambda left: running.result(timeout=left), at_least=_LAST)


def _ask_until(until: float, question: Callable[[float], T], *, at_least: float = 0.0) -> T:
    """Return what a question gives, which is told how many seconds are left.

    Raises:
        NoAnswer: It gives nothing.
    """
    left = max(at_least, until - time.monotonic())
    if left <= 0:
        raise Silence
    return ask(lambda: question(left), within=left)
