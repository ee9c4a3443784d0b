"""What gates forbid is found wherever a guest shows it, and nothing hides it."""

from __future__ import annotations

import subprocess
import time
from types import SimpleNamespace

import pytest

import pytest_kvm as kvm
from pytest_kvm.machine import breaches
from pytest_kvm.results import CommandResult


class Shell:
    """Answers a program's questions with what a test expects.

    Args:
        answers: What each program writes.
    """

    def __init__(self, **answers):
        self._answers = {"date": "1000007.5\n", **answers}
        self.asked = []

    def run(self, command, *, user, timeout):
        assert user == "root"
        self.asked.append(command)
        if command[0] in {"date", "systemctl"}:
            program = command[0]
        elif "core_pattern" in command[2]:
            program = "cores"
        else:
            program = "journalctl"
        return CommandResult(argv=(), exit_code=0, stdout_bytes=self._answers.get(program, "").encode())


def found(shell, **gates):
    """Return what a guest shows though its gates forbid it, which began 7 s ago."""
    machine = SimpleNamespace(name="web", shell=shell)
    all_found = breaches.find_breaches(machine, kvm.Gates(**gates), since=time.monotonic() - 7)
    return {each.what: each.lines for each in all_found}


def test_each_gate_asks_for_its_own():
    shell = Shell(journalctl="disk on fire\n", systemctl="a.service failed\n", cores="core.1\n")
    assert found(shell, journal="warning", failed_units=True, core_dumps=True) == {
        "lines of priority warning in its journal": ["disk on fire"],
        "failed units": ["a.service failed"],
        "core dumps": ["core.1"],
    }
    units, _, journal, cores = shell.asked
    assert journal[5:] == ["--priority=warning"]
    assert journal[4] == f"--since=@{cores[4]}"
    assert 1_000_000 < float(cores[4]) <= 1_000_000.5
    assert "--failed" in units


def test_a_gate_that_is_off_asks_nothing():
    shell = Shell(systemctl="a.service failed\n")
    assert found(shell, avc=True) == {}
    _, journal = shell.asked
    assert journal[5:] == ["_TRANSPORT=kernel", "+", "_TRANSPORT=audit"]


def test_denials_are_those_of_selinux_and_apparmor():
    lines = [
        "audit: type=1400 audit(1.2:3): avc:  denied  { read } for pid=1 comm=cat",
        'audit: type=1400 audit(1.2:4): apparmor="DENIED" operation="open" profile="p"',
        'audit: type=1400 audit(1.2:5): apparmor="STATUS" operation="profile_load"',
        "avc: granted",
    ]
    shell = Shell(journalctl="\n".join(lines))
    assert found(shell, avc=True) == {"denials": lines[:2]}
    assert found(shell, avc=True, allow_avc=["comm=cat", 'profile="p"']) == {}


def test_any_number_of_lines_can_be_allowed_and_hides_no_other():
    expected = [f"line {number}" for number in range(3000)]
    shell = Shell(journalctl="\n".join([*expected, "mine", "", "  "]))
    assert found(shell, journal="err", allow_journal=["^line"]) == {
        "lines of priority err in its journal": ["mine"]
    }


@pytest.mark.parametrize("time", ["", "1.%N", "1.5 2.5"])
def test_a_guest_that_tells_no_time_cannot_be_asked(time):
    [(what, lines)] = found(Shell(date=time), journal="err").items()
    assert what == "its gates cannot be looked at"
    assert lines == [f"web: date(1) tells no time: {time}"]


def test_what_a_guest_shows_is_clean_and_cut():
    shell = Shell(systemctl=f"\x1b[31mred\x07 {'a' * 1000}\n")
    [line] = found(shell, failed_units=True)["failed units"]
    assert len(line) == 300
    assert line.isprintable()


@pytest.fixture
def dumps(tmp_path):
    """Look for core dumps as a guest would, with a pattern of its own."""

    def dumps(pattern, *files):
        (tmp_path / "pattern").write_text(f"{pattern}\n")
        mounts = f"x {tmp_path} tmpfs rw 0 0\ny {tmp_path}/gone ext4 rw 0 0\nz /proc proc rw 0 0\n"
        (tmp_path / "mounts").write_text(mounts)
        for name in files:
            file = tmp_path / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(b"\x7fELF")
        script = breaches._CORE_DUMPS.replace("/proc/sys/kernel/core_pattern", str(tmp_path / "pattern"))
        script = script.replace("/proc/mounts", str(tmp_path / "mounts"))
        return subprocess.run(
            ["sh", "-c", script, "sh", f"{time.time() - 60:.3f}"], capture_output=True, text=True, check=False
        )

    return dumps


@pytest.mark.parametrize(
    ("pattern", "files"),
    [
        ("core", {"a/core", "a/b/core.77"}),
        ("core.%e.%p", {"a/core.sleep.77"}),
        ("{}/%e.core", {"sleep.core"}),
        ("{}/%E-%Z.core", {"!bin!sleep-1.core"}),
        ("{}/cores/%u/core-%%-%t", {"cores/0/core-%-17"}),
        ("{}/co[r]e", {"co[r]e", "co[r]e.9"}),
        ("{}/core%", {"core"}),
    ],
)
def test_core_dumps_are_where_the_pattern_puts_them(dumps, tmp_path, pattern, files):
    done = dumps(pattern.replace("{}", str(tmp_path)), *files, "a/score", "core.d/x", "other")
    assert done.returncode == 0, done.stderr
    assert {line.rpartition(f"{tmp_path}/")[2] for line in done.stdout.splitlines()} == files


@pytest.mark.parametrize("pattern", ["{}/nowhere/core.%p", "|/bin/false", ""])
def test_where_nothing_is_written_there_are_none(dumps, tmp_path, pattern):
    done = dumps(pattern.replace("{}", str(tmp_path)), "core.1")
    assert (done.returncode, done.stdout) == (0, "")


def test_core_dumps_that_a_program_takes_cannot_be_asked_for(dumps):
    done = dumps("|/opt/mine %p")
    assert done.returncode == 3
    assert "the kernel hands core dumps to |/opt/mine, which cannot be asked for them" in done.stderr
