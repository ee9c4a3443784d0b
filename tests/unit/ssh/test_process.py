"""Commands behind a test, with a server in this process."""

from __future__ import annotations

import signal
from dataclasses import replace

import pytest

from pytest_kvm.errors import CommandFailed, CommandTimeout, SshUnavailable
from pytest_kvm.ssh.process import Process


def test_a_dialog_goes_line_by_line(shell):
    process = shell.start("while read l; do echo got $l; done; echo bye; exit 3")
    lines = process.lines()
    process.write("one\n")
    assert next(lines) == "got one"
    process.write(b"two\n")
    assert next(lines) == "got two"
    process.close_stdin()
    assert list(lines) == ["bye"]
    assert process.wait().exit_code == 3


def test_it_is_listed_while_it_runs(shell):
    process = shell.start("read x")
    assert shell.processes == (process,)
    assert process.running
    assert process.poll() is None
    assert "running" in repr(process)
    process.close_stdin()
    process.wait()
    assert shell.processes == ()
    assert process.poll() == 1
    assert "exit code 1" in repr(process)


def test_what_it_wrote_can_be_seen_before_it_ends(shell):
    process = shell.start("echo out; echo err >&2; read x")
    next(process.lines())
    assert process.so_far().stdout == "out\n"
    assert process.so_far().exit_code == -1
    process.stop()


def test_waiting_too_short_leaves_it_alone(shell):
    process = shell.start("read x; echo done")
    with pytest.raises(CommandTimeout):
        process.wait(0.1)
    process.write("go\n")
    assert process.wait().stdout == "done\n"


def test_a_line_that_does_not_come_is_a_time_out(shell):
    with shell.start("sleep 60") as process, pytest.raises(CommandTimeout):
        next(process.lines(timeout=0.1))


@pytest.mark.parametrize("name", ["TERM", "SIGTERM", signal.SIGTERM])
def test_a_signal_reaches_command_and_children(shell, name):
    process = shell.start("trap 'echo caught; exit 7' TERM; echo up; sleep 60 & wait")
    lines = process.lines()
    assert next(lines) == "up"
    process.signal(name)
    assert list(lines) == ["caught"]
    assert process.wait().exit_code == 7


@pytest.mark.parametrize("name", ["", "KILL; reboot", "9", "term"])
def test_what_is_no_signal_is_refused(shell, name):
    with shell.start("sleep 60") as process, pytest.raises(ValueError, match="signal"):
        process.signal(name)


def test_stopping_kills_what_ignores_being_asked(shell):
    process = shell.start("trap '' TERM; echo up; while :; do sleep 0.1; done")
    next(process.lines())
    assert process.stop(grace=0.2).exit_code == 137


def test_leaving_the_block_ends_it(shell):
    with shell.start(["sleep", "60"]) as process:
        assert process.running
    assert not process.running
    process.signal("TERM")


def test_writing_to_what_has_ended_says_so(shell):
    process = shell.start("true")
    process.wait()
    with pytest.raises(SshUnavailable, match="standard input is closed"):
        process.write("x")


def test_more_output_than_can_be_kept_ends_it(shell):
    channel, context = shell.channel("yes")
    process = Process(channel, "yes", context=replace(context, output_limit=1000))
    with pytest.raises(CommandFailed, match="wrote more than 1000 bytes") as caught:
        process.wait()
    assert len(caught.value.result.stdout_bytes) == 1000
    process.release()


def test_lines_end_when_only_a_child_holds_the_output(shell):
    assert list(shell.start("sleep 30 & echo one").lines()) == ["one"]
