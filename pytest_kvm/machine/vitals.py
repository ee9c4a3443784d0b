"""Finds out what is the matter with the machine of a test that has failed.

It asks from outside in whether QEMU, the guest agent and sshd answer, each with
a limit of its own, so that nothing here hangs where the guest does. The kernel
is asked only if neither agent nor sshd answers, because that leaves traces in
the guest.
"""

from __future__ import annotations

import re
import socket
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

import psutil

from pytest_kvm.at_once import in_thread
from pytest_kvm.machine.agent import GuestAgent
from pytest_kvm.machine.blocked_tasks import dump_tasks, find_blocked_tasks
from pytest_kvm.machine.questions import NoAnswer, Silence, ask
from pytest_kvm.plaintext import one_line, plain

if TYPE_CHECKING:
    from pytest_kvm.hypervisor.protocol import Domain
    from pytest_kvm.machine.machine import Machine
    from pytest_kvm.ssh.access import Access

_PATIENCE = 10.0
"""Seconds that a part has to answer: a guest without KVM on a busy host takes some."""
_GREETING = 5.0
"""Seconds that libvirt waits for the agent's greeting before it asks."""
_AT_ONCE = 1.0
"""Seconds within which libvirt says that no agent is connected."""
_GOODBYE = 2.0
"""Seconds that sshd may take to close a connection that we have ended."""
_LOOK_WITHIN, _DUMP_WITHIN = 25.0, 90.0
"""Seconds that a look at tasks may take, by the agent and by SysRq; both have limits of their own within."""
_ENDS_WITHIN = 0.5
"""Seconds after which libvirt has told of the end of a QEMU that answers no more."""
_MOST_REGISTERS = 4000
_OTHER_REGISTERS = ("FCW", "FP", "XMM", "YMM", "ZMM", "Opmask", "MXCSR", "Q")
"""Those of floating point and vectors, which say nothing of a hang."""
_STATES = {
    "paused": "it is paused",
    "suspended": "it is asleep (ACPI S3)",
    "guest-panicked": "it is stopped since its kernel has panicked",
    "internal-error": "it is stopped since QEMU has met an error of its own",
    "io-error": "it is stopped since a disk of this host has failed",
}
"""What a guest is that does not run, by QEMU's word for it."""
_TASK = re.compile(r"^task (.+? \(\d+\)):", re.MULTILINE)


@dataclass(frozen=True, kw_only=True)
class Trouble:
    """What is the matter with a machine."""

    guest: str
    """The guest's name."""
    what: str
    """Half a sentence: "does not answer: it is paused"."""
    details: str = field(default="", repr=False)
    has_ended: bool = False
    monitor_answers: bool = True
    agent_answers: bool = False
    sshd_answers: bool = False
    was_dumped: bool = False
    """Whether the kernel was asked for a dump of its tasks."""


class _NoMonitor(NoAnswer):
    """QEMU itself does not answer."""


def find_trouble(
    machine: Machine, *, can_dump: bool, before_dump: Callable[[], None] | None = None
) -> Trouble | None:
    """Return what is the matter with a machine; None if it answers and none of its tasks is blocked.

    A guest that answers takes some 0.4 s, one that does not takes 40 s or less, and two minutes at most.

    Args:
        machine: The machine.
        can_dump: Whether to have the kernel of a silent guest dump its tasks on the console.
        before_dump: Called before that.
    """
    domain = machine.domain
    dump = partial(_dump_tasks, machine, before_dump) if can_dump else None
    found = _trouble_of_living(machine, dump=dump) if domain.alive() else None
    if not domain.alive() or (found is not None and domain.wait_end(_ENDS_WITHIN)):
        return Trouble(guest=machine.name, what=f"has ended: {domain.end_reason()}", has_ended=True)
    return found


def _trouble_of_living(machine: Machine, *, dump: Callable[[], str] | None) -> Trouble | None:
    trouble = partial(Trouble, guest=machine.name)
    try:
        _check_that_it_runs(machine)
    except NoAnswer as why:
        monitor_answers = not isinstance(why, _NoMonitor)
        return trouble(what=f"does not answer: {why}", monitor_answers=monitor_answers)
    calls = [in_thread(partial(_ping_agent, machine.domain)), in_thread(partial(_call_sshd, machine.access))]
    agent, sshd = [call.exception() for call in calls]
    for failure in (agent, sshd):
        if failure is not None and not isinstance(failure, NoAnswer):
            raise failure
    if isinstance(agent, Silence):
        machine.kernel.note_silence()
    if agent and sshd:
        parts = f"QEMU runs, the guest agent {agent}, sshd {sshd}"
        return _ask_kernel(machine, parts=parts, dump=dump)
    if sshd:
        details = _blocked_tasks(machine)[1]
        return trouble(what=f"runs, but its sshd {sshd}", details=details, agent_answers=True)
    if isinstance(agent, Silence):
        return trouble(what=f"runs, but its guest agent {agent}", sshd_answers=True)
    what, details = ("", "") if agent else _blocked_tasks(machine)
    return trouble(what=what, details=details, agent_answers=True, sshd_answers=True) if what else None


def _check_that_it_runs(machine: Machine) -> None:
    machine.kernel.read_console()
    if machine.kernel.has_panicked:
        raise NoAnswer("its kernel has panicked")
    try:
        state = _run_state(machine.domain)
    except NoAnswer:
        machine.kernel.note_silence()
        raise
    if state != "running":
        raise NoAnswer(_STATES.get(state, f"it does not run (QEMU says {state!r})"))


def _run_state(domain: Domain) -> str:
    """Return QEMU's word for what the guest does (``RunState`` of qemu-qmp-ref(7))."""
    pid = domain.pid
    if pid is not None and _state_of(pid) == psutil.STATUS_STOPPED:
        # Its monitor must not be asked now: a QEMU that does not answer for some time is given up.
        raise _NoMonitor(f"QEMU, process {pid}, is stopped by a signal")
    try:
        return str(ask(lambda: domain.qmp("query-status")["status"], within=_PATIENCE))
    except NoAnswer as failure:
        process = "" if pid is None else f" (process {pid}, {_state_of(pid)})"
        raise _NoMonitor(f"QEMU's monitor {failure}{process}") from None


def _state_of(pid: int) -> str:
    try:
        return psutil.Process(pid).status()
    except psutil.NoSuchProcess:
        return "gone"


def _ping_agent(domain: Domain) -> None:
    begun = domain.clock()
    try:
        ask(GuestAgent(domain, timeout=_PATIENCE).ping, within=_PATIENCE + _GREETING)
    except NoAnswer as failure:
        # libvirt has the same words for an agent that is not connected and for one that is silent.
        raise (Silence() if domain.clock() - begun > _AT_ONCE else failure) from None


def _call_sshd(access: Access) -> None:
    """Exchange identifications with sshd (RFC 4253 §4.2), which takes a connection that ends later for usual.

    A connection that ends before is an error in its log.
    """
    try:
        with socket.create_connection((access.host, access.port), timeout=_PATIENCE) as line:
            sent = line.recv(255)
            line.settimeout(_GOODBYE)
            with suppress(OSError):
                line.sendall(b"SSH-2.0-pytest_kvm\r\n")
                line.shutdown(socket.SHUT_WR)
                while line.recv(4096):
                    pass
    except TimeoutError:
        raise Silence from None
    except OSError as failure:
        raise NoAnswer(f"is not reached: {failure.strerror}") from None
    if not sent:
        raise NoAnswer("is not there: connections are closed at once")
    if not sent.startswith(b"SSH-"):
        raise NoAnswer(f"turns connections away: {one_line(sent.decode(errors='replace').strip())}")


def _blocked_tasks(machine: Machine) -> tuple[str, str]:
    """Return what there is to say of tasks that are blocked, and their stacks; two empty texts if none is."""
    try:
        found = ask(partial(find_blocked_tasks, machine.domain, patience=_PATIENCE), within=_LOOK_WITHIN)
    except Silence:
        return "answers, but a look at its tasks does not end", ""
    except NoAnswer as failure:
        return "", f"whether its tasks are blocked is not known: a look by the guest agent {failure}"
    return (
        f"has tasks that are blocked in its kernel: {', '.join(_TASK.findall(found))}" if found else "",
        found,
    )


def _ask_kernel(machine: Machine, *, parts: str, dump: Callable[[], str] | None) -> Trouble:
    """Learn what can be learned of a guest whose agent and sshd do not answer."""
    domain = machine.domain
    try:
        registers = _of_integers(ask(lambda: domain.hmp("info registers -a"), within=_PATIENCE))
    except NoAnswer as failure:
        registers = f"QEMU {failure}"
    tasks, who = "", "neither sshd nor guest agent does"
    if dump is not None:
        try:
            tasks = dump()
            who = f"its kernel runs, but {who}" if tasks else "its kernel is silent"
        except NoAnswer as failure:
            tasks = f"whether its kernel runs is not known: SysRq {failure}"
    details = "\n".join(filter(None, [parts, tasks, "registers:", registers]))
    what = f"does not answer: {who}"
    return Trouble(guest=machine.name, what=what, details=details, was_dumped=dump is not None)


def _dump_tasks(machine: Machine, before: Callable[[], None] | None) -> str:
    if before is not None:
        before()
    return ask(partial(dump_tasks, machine.domain, machine.console), within=_DUMP_WITHIN)


def _of_integers(registers: str) -> str:
    lines = plain(registers).strip().splitlines()
    return "\n".join(line for line in lines if not line.startswith(_OTHER_REGISTERS))[:_MOST_REGISTERS]
