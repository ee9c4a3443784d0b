"""Run commands in a guest's background."""

from __future__ import annotations

import pytest_kvm as kvm


def test_a_process_runs_beside_the_test(machine: kvm.Guest) -> None:
    machine.write_text("/run/app.log", "starting\n")
    with machine.start(["tail", "-f", "-n", "+1", "/run/app.log"]) as log:
        machine.write_text("/run/app.log", "listening on port 8080\n", append=True)
        assert any("listening" in line for line in log.lines())
        assert log.running
    assert not log.running  # leaving the block ended it


def test_a_process_is_talked_to(machine: kvm.Guest) -> None:
    with machine.start(["cat"]) as process:
        process.write("42\n")
        assert next(process.lines()) == "42"
        process.close_stdin()
        assert process.wait().exit_code == 0


def test_a_signal_reaches_the_whole_process_group(machine: kvm.Guest) -> None:
    process = machine.start("trap 'echo bye; exit 3' TERM; echo ready; while :; do sleep 0.1; done")
    assert next(process.lines()) == "ready"
    process.signal("TERM")
    result = process.wait()
    assert result.exit_code == 3
    assert result.stdout == "ready\nbye\n"


def test_what_was_written_so_far(machine: kvm.Guest) -> None:
    with machine.start("echo one; sleep 600") as process:
        next(process.lines())
        assert process.so_far().stdout == "one\n"
        assert process.poll() is None
        assert process.stop().exit_code == 128 + 15
