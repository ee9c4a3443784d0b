from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap

import psutil
import pytest

from pytest_kvm.errors import HostCommandFailed, MissingDependency
from pytest_kvm.host import command
from tests.conftest import ROOT


def test_returns_both_streams_apart():
    done = command.run(["sh", "-c", "echo out; echo err >&2"], timeout=10)
    assert (done.exit_code, done.stdout, done.stderr) == (0, "out\n", "err\n")


def test_passes_input_environment_and_folder(tmp_path):
    done = command.run(
        ["sh", "-c", "cat; echo $PKVM_WORD; pwd"],
        timeout=10,
        input="in\n",
        env={"PKVM_WORD": "word"},
        cwd=tmp_path,
    )
    assert done.stdout == f"in\nword\n{tmp_path}\n"


def test_input_that_nobody_reads_is_no_error():
    assert command.run(["true"], timeout=10, input="x" * 1_000_000).exit_code == 0


def test_bytes_that_are_no_text_are_replaced():
    assert command.run(["printf", r"\377"], timeout=10).stdout == "\ufffd"


def test_large_output_on_both_streams_does_not_block():
    script = "head -c 3000000 /dev/zero | tr '\\0' a; head -c 3000000 /dev/zero | tr '\\0' b >&2"
    done = command.run(["sh", "-c", script], timeout=30)
    assert (len(done.stdout), len(done.stderr)) == (3_000_000, 3_000_000)


def test_a_failure_shows_command_exit_code_and_last_lines():
    with pytest.raises(HostCommandFailed) as failure:
        command.run(["sh", "-c", "seq 100; echo broken >&2; exit 3"], timeout=10)
    assert failure.value.brief == "sh exited with 3"
    assert failure.value.details.startswith("$ sh -c 'seq 100")
    assert "broken" in failure.value.details
    assert "\n50\n" not in failure.value.details
    assert failure.value.resolution


def test_a_program_killed_by_a_signal_says_which():
    with pytest.raises(HostCommandFailed, match="killed by SIGTERM"):
        command.run(["sh", "-c", "kill -TERM $$"], timeout=10)


def test_an_absent_program_is_named():
    with pytest.raises(MissingDependency, match="no-such-program") as failure:
        command.run(["no-such-program"], timeout=10)
    assert failure.value.resolution == "install what brings no-such-program"


def test_running_out_of_time_kills_the_whole_group_and_keeps_what_was_said(tmp_path):
    script = f"sleep 300 & echo $! > {tmp_path}/pid; echo started; wait"
    with pytest.raises(HostCommandFailed, match="ran out of time after 1 s") as failure:
        command.run(["sh", "-c", script], timeout=1)
    assert "started" in failure.value.details
    assert _gone(int((tmp_path / "pid").read_text()))


def test_lines_are_told_as_they_come():
    seen: list[str] = []
    command.run(["sh", "-c", "echo one; echo two >&2"], timeout=10, on_line=seen.append)
    assert sorted(seen) == ["one", "two"]


@pytest.mark.parametrize("stream", ["", " >&2"], ids=["stdout", "stderr"])
def test_a_listener_that_fails_ends_the_program(stream):
    def refuse(line):
        raise BrokenPipeError(line)

    # More than a pipe holds: whoever stops reading blocks the program.
    command_line = f"echo one{stream}; yes | head -c 200000{stream}; exec sleep 300"
    with pytest.raises(BrokenPipeError, match="one"):
        command.run(["sh", "-c", command_line], timeout=200, on_line=refuse)


def test_the_child_dies_with_a_killed_parent():
    script = textwrap.dedent(
        """
        from pytest_kvm.host import command
        tell = lambda line: print(line, flush=True)
        command.run(["sh", "-c", "echo $$; exec sleep 300"], timeout=300, on_line=tell)
        """
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, text=True, cwd=ROOT, env={**os.environ}
    )
    child = int(parent.stdout.readline())
    parent.send_signal(signal.SIGKILL)
    parent.communicate()
    assert _gone(child)


def _gone(pid: int) -> bool:
    try:
        process = psutil.Process(pid)
        if process.status() != psutil.STATUS_ZOMBIE:
            process.wait(timeout=10)
    except psutil.TimeoutExpired:
        return False
    except psutil.NoSuchProcess:
        return True
    return True
