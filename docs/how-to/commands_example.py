"""Run commands in a guest."""

from __future__ import annotations

import pytest

import pytest_kvm as kvm


def test_a_command_returns_its_result(machine: kvm.Guest) -> None:
    result = machine.run(["uname", "-s"])
    assert result.stdout == "Linux\n"
    assert result.stderr == ""
    assert result.exit_code == 0
    assert result.duration > 0


def test_a_list_is_quoted_and_a_string_is_for_the_shell(machine: kvm.Guest) -> None:
    assert machine.run(["echo", "$HOME", "a  b", "*"]).stdout == "$HOME a  b *\n"
    assert machine.run("echo $HOME | tr a-z A-Z").stdout == "/ROOT\n"


def test_a_command_that_fails_raises(machine: kvm.Guest) -> None:
    with pytest.raises(kvm.CommandFailed) as failure:
        machine.run(["ls", "/nowhere"])
    assert failure.value.result.exit_code == 2
    assert "No such file" in failure.value.result.stderr


def test_a_failure_can_be_what_is_wanted(machine: kvm.Guest) -> None:
    refused = machine.run(["mount", "/dev/vdz", "/mnt"], check=False)
    assert not refused.ok
    assert "/dev/vdz" in refused.stderr


def test_input_environment_folder_and_user(machine: kvm.Guest) -> None:
    result = machine.run(
        "read line; echo $line $GREETING $PWD $(id -un)",
        input="hello\n",
        env={"GREETING": "hi there"},
        cwd="/tmp",
        user="www-data",
    )
    assert result.stdout == "hello hi there /tmp www-data\n"


def test_a_time_out_keeps_what_was_written(machine: kvm.Guest) -> None:
    with pytest.raises(kvm.CommandTimeout) as late:
        machine.run("echo started; sleep 600", timeout=2)
    assert late.value.result.stdout == "started\n"


def test_output_may_be_anything(machine: kvm.Guest) -> None:
    result = machine.run(["printf", r"\377\0text"])
    assert result.stdout_bytes == b"\xff\0text"
    assert result.stdout == "\N{REPLACEMENT CHARACTER}\0text"
