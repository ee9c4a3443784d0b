"""Which of a guest's parts answer: each is asked within a limit, from outside in."""

from __future__ import annotations

import signal
import socket
import subprocess
from dataclasses import replace

import psutil
import pytest

from pytest_kvm.errors import AgentError, DomainFailed
from pytest_kvm.machine import blocked_tasks, vitals
from pytest_kvm.machine.vitals import Trouble, find_trouble
from pytest_kvm.waiting import NotYet, wait_until

LISTED = "task dd (77): dd if=/dev/x \x1b[31m\n[<0>] io_schedule+0x1\n"
LOOK = f"sh -c {blocked_tasks._BLOCKED} sh 8"


@pytest.fixture
def impatient(monkeypatch):
    """Do not wait long for what does not answer anyway."""
    monkeypatch.setattr(vitals, "_PATIENCE", 0.5)
    monkeypatch.setattr(vitals, "_GREETING", 0.0)
    monkeypatch.setattr(vitals, "_LOOK_WITHIN", 0.5)
    monkeypatch.setattr(blocked_tasks, "_ANSWERS_WITHIN", 0.5)


@pytest.fixture(autouse=True)
def at_once(monkeypatch):
    """Wait for no end: what stands for QEMU and sshd here has none."""
    monkeypatch.setattr(vitals, "_ENDS_WITHIN", 0.0)
    monkeypatch.setattr(vitals, "_GOODBYE", 0.05)


@pytest.fixture
def state(domain):
    """What QEMU's monitor says."""
    domain.pid = None
    answer = {"status": "running"}

    def qmp(command, arguments=None):
        if command == "query-status":
            return answer
        domain.done.append(command)
        raise DomainFailed("no such device")

    domain.qmp = qmp
    return answer


@pytest.fixture
def find(machine, state, sshd):
    machine.kernel.begin()

    def find(*, port=sshd, **options):
        asked = replace(machine, access=replace(machine.access, port=port))
        return find_trouble(asked, **{"can_dump": True, **options})

    return find


@pytest.fixture
def free_port():
    with socket.socket() as line:
        line.bind(("127.0.0.1", 0))
        yield line.getsockname()[1]


@pytest.fixture
def silent_port():
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


@pytest.fixture
def agent(domain):
    """Let the guest agent answer; return what a look for tasks prints."""
    domain.agent_replies["guest-ping"] = lambda _arguments: {}
    outputs = {LOOK: ""}
    domain.agent_runs(outputs)
    return outputs


def test_everybody_answers(agent, find):
    assert find() is None


def test_a_guest_without_an_agent_is_in_no_trouble(find):
    assert find() is None


def test_tasks_that_hang(agent, find):
    agent[LOOK] = f"{LISTED}task kworker/0:1 (5): \n"
    assert find() == Trouble(
        guest="web",
        what="has tasks that are blocked in its kernel: dd (77), kworker/0:1 (5)",
        details="task dd (77): dd if=/dev/x \n[<0>] io_schedule+0x1\ntask kworker/0:1 (5):",
        agent_answers=True,
        sshd_answers=True,
    )


def test_an_agent_that_may_run_nothing(domain, find, free_port):
    domain.agent_replies["guest-ping"] = lambda _arguments: {}
    assert find() is None
    assert find(port=free_port).details == (
        "whether its tasks are blocked is not known: "
        "a look by the guest agent fails: web: the guest agent is not connected"
    )


@pytest.mark.parametrize("answer", [{}, [], "x", None, {"pid": "1"}])
def test_an_agent_that_answers_nonsense(agent, domain, find, answer):
    domain.agent_replies["guest-exec"] = lambda _arguments: answer
    assert find() is None


def test_a_look_that_does_not_end(agent, domain, find, impatient):
    domain.agent_replies["guest-exec-status"] = lambda _arguments: {"exited": False}
    assert find() == Trouble(
        guest="web",
        what="answers, but a look at its tasks does not end",
        agent_answers=True,
        sshd_answers=True,
    )


def test_an_agent_that_is_silent(domain, machine, find, monkeypatch):
    def ping(_arguments):
        domain.held_up -= 2.0
        raise AgentError("not available for now")

    domain.agent_replies["guest-ping"] = ping
    assert find() == Trouble(guest="web", what="runs, but its guest agent does not answer", sshd_answers=True)
    domain.agent_replies = {"guest-file-open": pytest.fail}
    machine.kernel.look()


def test_a_guest_that_ends_meanwhile(domain, find):
    def qmp(command, arguments=None):
        domain.end("QEMU died: signal 9")
        raise DomainFailed("web has ended")

    domain.qmp = qmp
    assert find() == Trouble(guest="web", what="has ended: QEMU died: signal 9", has_ended=True)


def test_a_guest_that_has_ended(domain, find):
    domain.end("QEMU died: signal 9")
    assert find() == Trouble(guest="web", what="has ended: QEMU died: signal 9", has_ended=True)


def test_a_panic_that_nobody_has_looked_at_yet(find, printed):
    printed("[    5.000000] Kernel panic - not syncing: Attempted to kill init!\n")
    assert find() == Trouble(guest="web", what="does not answer: its kernel has panicked")


@pytest.mark.parametrize(
    ("status", "says"),
    [
        ("paused", "it is paused"),
        ("internal-error", "it is stopped since QEMU has met an error of its own"),
        ("prelaunch", "it does not run (QEMU says 'prelaunch')"),
    ],
)
def test_a_guest_that_does_not_run(state, find, status, says):
    state["status"] = status
    assert find() == Trouble(guest="web", what=f"does not answer: {says}")


def test_a_qemu_that_is_stopped_is_not_asked(domain, state, find):
    def qmp(command, arguments=None):
        raise AssertionError("QEMU would be given up")

    with subprocess.Popen(["sleep", "600"]) as sleep:
        try:
            sleep.send_signal(signal.SIGSTOP)
            domain.pid, domain.qmp = sleep.pid, qmp

            def check_stopped():
                if psutil.Process(sleep.pid).status() != psutil.STATUS_STOPPED:
                    raise NotYet("runs")

            wait_until(check_stopped, describe="the end of sleep", timeout=20, every=0.01)
            found = find()
        finally:
            sleep.kill()
    assert found.what == f"does not answer: QEMU, process {sleep.pid}, is stopped by a signal"
    assert not found.monitor_answers


def test_a_monitor_that_fails(domain, find):
    def qmp(command, arguments=None):
        raise DomainFailed("the monitor is busy")

    domain.qmp = qmp
    assert find().what == "does not answer: QEMU's monitor fails: the monitor is busy"
    assert not find().monitor_answers
    domain.pid = 2**22 + 1
    assert find().what.endswith(f"the monitor is busy (process {2**22 + 1}, gone)")


def test_an_sshd_that_is_gone_or_hangs(agent, find, free_port, silent_port, impatient):
    assert find(port=free_port).what == "runs, but its sshd is not reached: Connection refused"
    assert find(port=silent_port).what == "runs, but its sshd does not answer"
    found = find(port=free_port)
    assert (found.agent_answers, found.sshd_answers) == (True, False)


@pytest.mark.parametrize(
    ("sent", "says"),
    [
        (b"", "is not there: connections are closed at once"),
        (b"Not allowed at this time\r\n", "turns connections away: Not allowed at this time"),
    ],
)
def test_an_sshd_that_closes_at_once(agent, find, monkeypatch, sent, says):
    ours, theirs = socket.socketpair()
    with theirs:
        theirs.sendall(sent)
        theirs.shutdown(socket.SHUT_WR)
        monkeypatch.setattr(vitals.socket, "create_connection", lambda address, timeout: ours)
        assert find().what == f"runs, but its sshd {says}"


def test_sshd_gets_an_identification_and_an_end(machine, agent, find, monkeypatch):
    ours, theirs = socket.socketpair()
    with theirs:
        theirs.sendall(b"SSH-2.0-x\r\n and more")
        theirs.shutdown(socket.SHUT_WR)
        monkeypatch.setattr(vitals.socket, "create_connection", lambda address, timeout: ours)
        assert find() is None
        assert theirs.recv(100) == b"SSH-2.0-pytest_kvm\r\n"
        assert theirs.recv(100) == b""


def test_nobody_but_the_kernel(domain, find, printed, silent_port, impatient):
    def press(codes, *, hold_ms):
        letter = {10: "9", 17: "w", 38: "l", 20: "t"}[codes[-1]]
        domain.done.append(letter)
        printed(
            {
                "9": "[ 1.0] sysrq: Changing Loglevel\n",
                "w": "[ 2.0] sysrq: Show Blocked State\n[ 2.1] task:dd state:D pid:77 ppid:1 \n",
                "l": "[ 3.0] sysrq: Show backtrace of all active CPUs\n[ 3.1] do_idle\n",
                "t": "[ 4.0] sysrq: Show State\n[ 4.1] task:init state:S pid:1 ppid:0 \n"
                "[ 4.2] task:kworker/0:1 state:I pid:5 ppid:2 \n[ 4.3] schedule\n",
            }[letter]
        )

    domain.send_keys = press
    domain.hmp = lambda line: f"{line}\r\nCPU#0\nRIP=1 HLT=0\nYMM00=0\nFPR0=0\n"
    assert find(port=silent_port, before_dump=lambda: domain.done.append("before")) == Trouble(
        guest="web",
        what="does not answer: its kernel runs, but neither sshd nor guest agent does",
        details="QEMU runs, the guest agent fails: web: the guest agent is not connected, "
        "sshd does not answer\n"
        "[ 2.0] sysrq: Show Blocked State\n[ 2.1] task:dd state:D pid:77 ppid:1\n"
        "[ 3.0] sysrq: Show backtrace of all active CPUs\n[ 3.1] do_idle\n"
        "[ 4.1] task:init state:S pid:1 ppid:0\n"
        "registers:\ninfo registers -a\nCPU#0\nRIP=1 HLT=0",
        was_dumped=True,
    )
    assert domain.done == ["before", "9", "w", "l", "t"]
    domain.done.clear()
    again = find(port=silent_port, can_dump=False, before_dump=pytest.fail)
    assert (again.what, again.was_dumped) == ("does not answer: neither sshd nor guest agent does", False)
    assert not domain.done


REFUSED = "[ 1.0] sysrq: This sysrq operation is disabled.\n"


def test_a_kernel_that_may_not_dump(domain, find, printed, silent_port, impatient):
    domain.hmp = str
    domain.send_keys = lambda codes, hold_ms: printed(REFUSED)
    found = find(port=silent_port)
    assert found.what == "does not answer: its kernel runs, but neither sshd nor guest agent does"
    assert "sysrq_always_enabled" in found.details


def test_a_kernel_that_may_dump_but_not_tell_all(domain, find, printed, silent_port, impatient):
    domain.hmp = str
    domain.send_keys = lambda codes, hold_ms: printed(REFUSED if codes[-1] == 10 else "[ 2.0] sysrq: Show\n")
    found = find(port=silent_port)
    assert "sysrq: Show" in found.details
    assert "sysrq_always_enabled" not in found.details


def test_a_console_log_that_begins_anew(domain, machine, find, silent_port, impatient, printed):
    printed("x" * 1000)
    domain.hmp = str

    def press(codes, *, hold_ms):
        if codes[-1] == 10:
            machine.console.log.write_text("")
        printed("[ 2.0] sysrq: Show\n")

    domain.send_keys = press
    assert "sysrq: Show" in find(port=silent_port).details


def test_a_kernel_that_is_silent(domain, machine, find, silent_port, impatient):
    domain.hmp = str
    domain.qmp = lambda command, arguments=None: {"status": "running"}
    found = find(port=silent_port)
    assert found.what == "does not answer: its kernel is silent"


def test_a_kernel_that_cannot_be_asked(domain, find, silent_port, impatient):
    def fails(*_arguments, **_named):
        raise DomainFailed("no such keyboard")

    domain.hmp = domain.send_keys = fails
    found = find(port=silent_port)
    assert found.what == "does not answer: neither sshd nor guest agent does"
    assert "whether its kernel runs is not known: SysRq fails: no such keyboard" in found.details
    assert "registers:\nQEMU fails: no such keyboard" in found.details
