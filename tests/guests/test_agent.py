from __future__ import annotations

import pytest

from pytest_kvm.errors import AgentError, CommandFailed, CommandTimeout


def test_the_agent_answers(guest):
    guest.agent.wait(timeout=60)
    guest.agent.ping()


def test_a_program_runs_without_a_shell_and_brings_everything_back(guest):
    result = guest.agent.exec(["sh", "-c", "cat; echo oops >&2; exit 3"], input=b"\x00\xffin", check=False)
    assert (result.exit_code, result.stdout_bytes, result.stderr) == (3, b"\x00\xffin", "oops\n")
    assert guest.agent.exec(["printf", "%s", "$HOME;x"]).stdout == "$HOME;x"


def test_a_failure_is_told_like_any_command(guest):
    with pytest.raises(CommandFailed, match="exit code 1"):
        guest.agent.exec(["false"])


def test_a_program_that_does_not_end_is_not_waited_for(guest):
    with pytest.raises(CommandTimeout, match="sleep"):
        guest.agent.exec(["sleep", "5"], timeout=0.5)


def test_what_the_agent_refuses_is_an_error_of_its_own(guest):
    with pytest.raises(AgentError):
        guest.agent.exec(["/nonexistent"])
    with pytest.raises(AgentError):
        guest.agent.read_text("/nonexistent")
    with pytest.raises(AgentError):
        guest.agent.call("guest-nonsense")


def test_output_that_is_too_long_is_told_and_the_agent_can_be_had_back(guest):
    with pytest.raises(AgentError, match="head printed more than the guest agent passes on") as told:
        guest.agent.exec(["head", "-c", "9000000", "/dev/zero"])
    remedy = told.value.resolution.rpartition(": ")[2]
    guest.run(remedy.split(), user="root")
    guest.agent.wait(timeout=60)


def test_files_and_facts_come_without_a_login(guest):
    assert guest.agent.read_text("/etc/hostname").strip() == guest.hostname
    assert guest.agent.call("guest-get-osinfo")["id"] == "debian"
