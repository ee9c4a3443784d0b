"""Background processes in a real guest."""

from __future__ import annotations

import signal

import pytest

import pytest_kvm as kvm


def runs(guest, pattern):
    return guest.run(["pgrep", "-f", pattern], check=False).ok


def test_a_dialog_goes_line_by_line(guest):
    process = guest.start(["cat"])
    lines = process.lines()
    for word in ("one", "two"):
        process.write(f"{word}\n")
        assert next(lines) == word
    process.close_stdin()
    assert list(lines) == []
    assert process.wait().check().stdout == "one\ntwo\n"


def test_leaving_the_block_ends_command_and_children(guest):
    with guest.start("sleep 4321 & echo up; wait") as process:
        assert next(process.lines()) == "up"
        assert runs(guest, "sleep 432[1]")
    assert not process.running
    assert not runs(guest, "sleep 432[1]")


def test_what_ignores_being_asked_is_killed(guest):
    process = guest.start("trap '' TERM; echo up; while :; do sleep 1; done")
    next(process.lines())
    assert process.stop(grace=1).exit_code == 137


@pytest.mark.parametrize("user", [None, "nobody"])
def test_a_signal_reaches_it(guest, user):
    process = guest.start("trap 'echo reloaded' HUP; echo up; while :; do sleep 0.2; done", user=user)
    lines = process.lines()
    assert next(lines) == "up"
    process.signal(signal.SIGHUP)
    assert next(lines) == "reloaded"
    process.kill()
    assert process.wait().exit_code in {137, 255}
    assert not process.running


def test_waiting_too_short_leaves_it_running(guest):
    with guest.start(["sleep", "600"]) as process:
        with pytest.raises(kvm.CommandTimeout):
            process.wait(1)
        assert process.running


def test_more_processes_than_one_connection_takes(guest):
    processes = [guest.start("echo up; exec sleep 600") for _ in range(12)]
    try:
        assert [next(process.lines()) for process in processes] == ["up"] * 12
        assert guest.run("echo still").stdout == "still\n"
    finally:
        for process in processes:
            process.stop()
