from __future__ import annotations

import base64

import pytest

from pytest_kvm.errors import AgentError, CommandFailed, CommandTimeout
from pytest_kvm.machine.agent import GuestAgent


@pytest.fixture
def agent(domain):
    return GuestAgent(domain, timeout=0.5)


def replies(domain, *statuses):
    left = list(statuses)
    seen = []

    def started(arguments):
        seen.append(arguments)
        return {"pid": 42}

    domain.agent_replies = {
        "guest-exec": started,
        "guest-exec-status": lambda _arguments: left.pop(0) if len(left) > 1 else left[0],
    }
    return seen


def test_ping_returns_or_says_that_there_is_no_agent(agent, domain):
    with pytest.raises(AgentError, match="not connected"):
        agent.ping()
    domain.agent_replies["guest-ping"] = lambda _arguments: {}
    agent.ping()
    agent.wait(timeout=1)


def test_wait_ends_at_once_when_the_guest_is_gone(agent, domain):
    domain.end("destroyed")
    with pytest.raises(AgentError, match="not connected"):
        agent.wait(timeout=60)


def test_wait_runs_out(agent):
    with pytest.raises(
        AgentError, match=r"timed out after 0 s waiting for the agent of web; last seen: .*not"
    ):
        agent.wait(timeout=0.1)


@pytest.mark.parametrize("stream", ["out", "err"])
def test_output_that_the_agent_has_cut_off_passes_for_no_result(agent, domain, stream):
    replies(domain, {"exited": True, "exitcode": 0, f"{stream}-data": "", f"{stream}-truncated": True})
    with pytest.raises(AgentError, match="web: yes printed more than the guest agent passes on"):
        agent.exec(["yes"])


def test_exec_hands_over_everything_and_brings_everything_back(agent, domain):
    seen = replies(
        domain,
        {"exited": False},
        {
            "exited": True,
            "exitcode": 0,
            "out-data": base64.b64encode(b"\x00\xff").decode(),
            "err-data": base64.b64encode(b"warned").decode(),
        },
    )
    result = agent.exec(["/bin/cat", "-"], input="text", env={"A": "b"})
    assert (result.exit_code, result.stdout_bytes, result.stderr) == (0, b"\x00\xff", "warned")
    assert seen == [
        {
            "path": "/bin/cat",
            "arg": ["-"],
            "capture-output": True,
            "input-data": base64.b64encode(b"text").decode(),
            "env": ["A=b"],
        }
    ]


def test_exec_checks_the_exit_code_if_asked_to(agent, domain):
    replies(domain, {"exited": True, "exitcode": 3})
    assert agent.exec(["/bin/false"], check=False).exit_code == 3
    with pytest.raises(CommandFailed, match="exit code 3"):
        agent.exec(["/bin/false"])


def test_a_program_ended_by_a_signal_has_the_code_a_shell_gives(agent, domain):
    replies(domain, {"exited": True, "signal": 9})
    assert agent.exec(["x"], check=False).exit_code == 137


def test_a_program_that_does_not_end_is_told_with_its_process(agent, domain):
    replies(domain, {"exited": False})
    with pytest.raises(CommandTimeout, match=r"sleep.* still ran after 0 s(.|\n)*process 42"):
        agent.exec(["sleep", "60"], timeout=0.1)


def test_read_text_reads_a_file(agent, domain):
    domain.agent_has_file("/etc/hostname", "web\n")
    assert agent.read_text("/etc/hostname") == "web\n"
    with pytest.raises(AgentError, match="/etc/absent"):
        agent.read_text("/etc/absent")
