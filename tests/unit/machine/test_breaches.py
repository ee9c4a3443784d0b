"""What gates forbid is found wherever a guest shows it, and nothing hides it."""

from __future__ import annotations

import json
import os
import re
import subprocess
import time
from types import SimpleNamespace

import pytest

import pytest_kvm as kvm
from pytest_kvm.machine import breaches, core_dumps
from pytest_kvm.results import CommandResult

SCRIPTS = {breaches._SETTLE: "settle", core_dumps.SCRIPT: "cores", breaches._AUDIT_LOG: "audit log"}


class Shell:
    """Answers questions with what a test expects.

    Args:
        answers: What each program or script writes.
    """

    def __init__(self, answers):
        self._answers = {"settle": "1000007.5\n", **answers}
        self.asked = []

    def run(self, command, *, user, timeout):
        assert user == "root"
        self.asked.append(command)
        question = SCRIPTS[command[2]] if command[0] == "sh" else command[0]
        return CommandResult(argv=(), exit_code=0, stdout_bytes=self._answers.get(question, "").encode())


def entry(message, **fields):
    """Return an entry of the journal, as journalctl(1) writes it."""
    known = {"__REALTIME_TIMESTAMP": "1796074537080000", "SYSLOG_IDENTIFIER": "app", "_PID": "7"}
    return f"{json.dumps({**known, 'MESSAGE': message, **fields})}\n"


def found(answers, **gates):
    """Return what a guest shows though its gates forbid it, for a test that began 7 s ago."""
    machine = SimpleNamespace(name="web", shell=Shell(answers))
    all_found = breaches.find_breaches(machine, kvm.Gates(**gates), since=time.monotonic() - 7)
    return {each.what: each.lines for each in all_found}, machine.shell.asked


ERRORS = "messages of priority err in its journal"


def test_each_gate_asks_for_its_own():
    answers = {"journalctl": entry("disk on fire"), "systemctl": "a.service failed\n", "cores": "core.1\n"}
    shown, asked = found(answers, journal="err", failed_units=True, core_dumps=True)
    assert shown == {
        ERRORS: ["21:35:37.080000 app[7]: disk on fire"],
        "failed units": ["a.service failed"],
        "core dumps": ["core.1"],
    }
    units, settle, journal, cores = asked
    assert "--failed" in units
    assert settle[2] == breaches._SETTLE
    assert cores[5] == "list"
    assert journal[-2:] == [f"--since=@{cores[4]}", "--priority=err"]
    assert 1_000_000 < float(cores[4]) <= 1_000_000.5


def test_a_gate_that_is_off_asks_nothing():
    shown, asked = found({"systemctl": "a.service failed\n", "cores": "core.1\n"}, avc=True)
    assert shown == {}
    _, journal, log = asked
    assert journal[-3:] == ["_TRANSPORT=kernel", "+", "_TRANSPORT=audit"]
    assert log[2] == breaches._AUDIT_LOG
    _, asked = found({}, failed_units=True)
    assert [command[0] for command in asked] == ["systemctl"]


def test_denials_are_those_of_selinux_and_apparmor():
    messages = [
        "audit: type=1400 audit(1.2:3): avc:  denied  { read } for pid=1 comm=cat",
        'audit: type=1400 audit(1.2:5): apparmor="STATUS" operation="profile_load"',
        "avc: granted",
    ]
    in_log = 'type=AVC msg=audit(1.2:4): apparmor="DENIED" operation="open" profile="p"'
    answers = {"journalctl": "".join(map(entry, messages)), "audit log": in_log}
    shown, _ = found(answers, avc=True)
    assert shown == {"denials": [f"21:35:37.080000 app[7]: {messages[0]}", in_log]}
    assert found(answers, avc=True, allow_avc=["comm=cat", 'profile="p"'])[0] == {}


def test_any_number_of_lines_can_be_allowed_and_hides_no_other():
    answers = {"journalctl": "".join(entry(f"line {number}") for number in range(3000)) + entry("mine")}
    shown, _ = found(answers, journal="err", allow_journal=[": line"])
    assert shown == {ERRORS: ["21:35:37.080000 app[7]: mine"]}


@pytest.mark.parametrize(
    ("message", "shown"),
    [
        (
            "Process 70 dumped core\n\nStack trace:\n#0 main",
            ": Process 70 dumped core\n\nStack trace:\n#0 main",
        ),
        ([0x1B, 0x5B, 0x31, 0x6D, 0x61, 0xFF], ": a\ufffd"),
        (None, ": "),
        ("\x1b[31mred", ": red"),
        ("a\u2028b", ": a\u2028b"),
    ],
)
def test_a_message_is_whole_and_clean(message, shown):
    answers = {"journalctl": entry(message)}
    assert found(answers, journal="err")[0] == {ERRORS: [f"21:35:37.080000 app[7]{shown}"]}
    assert found(answers, journal="err", allow_journal=[re.escape(shown[2:])])[0] == {}


def test_who_has_logged_a_message_is_told_as_well_as_it_is_known():
    answers = {
        "journalctl": entry("a", SYSLOG_IDENTIFIER=None, _COMM="cat", _PID=None) + entry("b", _PID=None)
    }
    assert found(answers, journal="err")[0] == {ERRORS: ["21:35:37.080000 cat: a", "21:35:37.080000 app: b"]}


@pytest.mark.parametrize("written", ["no entry", "[]", "{}", '{"MESSAGE": [300]}'])
def test_what_is_no_entry_is_a_guest_that_cannot_be_asked(written):
    [(what, [why])] = found({"journalctl": written}, journal="err")[0].items()
    assert what == "its gates cannot be looked at"
    assert why.startswith("web: journalctl(1) has written what is no entry: ")


def test_what_is_allowed_is_searched_for_in_the_whole_line_and_its_beginning_is_shown():
    line = "a" * 2000 + " end"
    assert found({"systemctl": line}, failed_units=True, allow_failed_units=["end$"])[0] == {}
    [[shown]] = found({"systemctl": f"\x1b[31m{line}\x07"}, failed_units=True)[0].values()
    assert shown == "a" * 1000 + "…"


@pytest.mark.parametrize("time", ["", "1.%N", "1.5\n2.5"])
def test_a_guest_that_tells_no_time_cannot_be_asked(time):
    [(what, lines)] = found({"settle": time}, journal="err")[0].items()
    assert what == "its gates cannot be looked at"
    assert lines == [f"web: date(1) tells no time: {' '.join(time.split())}"]


def test_why_a_command_failed_is_told(monkeypatch):
    def run(shell, command, *, user, timeout):
        result = CommandResult(argv=(), exit_code=3, stderr_bytes=b"warning: \x1b[1mold\nno journal\n")
        raise kvm.CommandFailed("web: `journalctl`: exit code 3", result=result)

    monkeypatch.setattr(Shell, "run", run)
    assert found({}, journal="err")[0] == {
        "its gates cannot be looked at": ["web: `journalctl`: exit code 3: no journal"]
    }


# ------------------------------------------------------------ scripts


@pytest.fixture
def ran(tmp_path):
    """Run a script of the guest with programs of the test's own in front of the others."""
    programs = tmp_path / "programs"
    programs.mkdir()

    def ran(script, since, *arguments, **own):
        for name, text in own.items():
            (programs / name).write_text(f"#!/bin/sh\n{text}\n")
            (programs / name).chmod(0o755)
        environment = {"PATH": f"{programs}:{os.environ['PATH']}"}
        argv = ["sh", "-c", script, "sh", f"{since:.3f}", *arguments]
        return subprocess.run(
            argv, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
        )

    return ran


@pytest.mark.parametrize("since", [1796074537.2, 1796074536.0])
def test_the_log_of_auditd_is_read_if_it_runs(ran, tmp_path, since):
    log = tmp_path / "my log"
    old, new = (
        f"type=AVC msg=audit({seconds}:1): avc: denied\n" for seconds in ("1796074536.9", "1796074537.3")
    )
    log.write_text(f"{old}{new}no record\n")
    (tmp_path / "conf").write_text(f"# log_file = no\n log_file= {log}\n")
    script = breaches._AUDIT_LOG.replace("/etc/audit/auditd.conf", str(tmp_path / "conf"))
    assert ran(script, since, systemctl="exit 3").stdout == ""
    done = ran(script, since, systemctl="exit 0")
    assert done.stdout == (new if since > 1796074536.9 else old + new)
    log.unlink()
    assert ran(script, since, systemctl="exit 0").returncode != 0


@pytest.fixture
def dumps(tmp_path, ran):
    """Look for core dumps as a guest would, with a pattern of its own."""

    def dumps(pattern, *files, what="list", **programs):
        (tmp_path / "pattern").write_text(f"{pattern}\n")
        escaped = str(tmp_path / "in tmp").replace(" ", "\\040")
        mounts = f"x {escaped} tmpfs rw 0 0\ny {tmp_path}/gone ext4 rw 0 0\nz /proc proc rw 0 0\n"
        (tmp_path / "mounts").write_text(mounts)
        for name in files:
            file = tmp_path / "in tmp" / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(b"\x7fELF")
        (tmp_path / "in tmp" / "core.9").write_bytes(b"text")
        script = core_dumps.SCRIPT.replace("/proc/sys/kernel/core_pattern", str(tmp_path / "pattern"))
        script = script.replace("/proc/mounts", str(tmp_path / "mounts"))
        return ran(script, time.time() - 60, what, **programs)

    return dumps


@pytest.mark.parametrize(
    ("pattern", "files"),
    [
        ("core", {"a/core", "a/b/core.77"}),
        ("core.%e.%p", {"a/core.sleep.77"}),
        ("./core.%p", {"a/core.77"}),
        ("../dumps/core.%p", {"a/dumps/core.77"}),
        ("{}/my cores/core.%p", {"my cores/core.77"}),
        ("{}/%e.core", {"sleep.core"}),
        ("{}/%E-%Z.core", {"!bin!sleep-1.core"}),
        ("{}/cores/%u/core-%%-%t", {"cores/0/core-%-17"}),
        ("{}/co[r]e", {"co[r]e", "co[r]e.9"}),
        ("{}/core%", {"core"}),
    ],
)
def test_core_dumps_are_where_the_pattern_puts_them(dumps, tmp_path, pattern, files):
    folder = f"{tmp_path}/in tmp"
    done = dumps(pattern.replace("{}", folder), *files, "a/score", "core.d/x", "other")
    assert done.returncode == 0, done.stderr
    shown = {line.replace("\\ ", " ").rpartition(f"{folder}/")[2] for line in done.stdout.splitlines()}
    assert shown == files


def test_files_are_listed_for_programs(dumps, tmp_path):
    done = dumps("core.%p", "a/core.77", what="files")
    changed, size, path = done.stdout.rstrip("\n").split(" ", 2)
    assert (int(size), path) == (4, f"{tmp_path}/in tmp/a/core.77")
    assert abs(float(changed) - time.time()) < 3600


@pytest.mark.parametrize("pattern", ["{}/nowhere/core.%p", "|/bin/false", ""])
def test_where_nothing_is_written_there_are_none(dumps, tmp_path, pattern):
    done = dumps(pattern.replace("{}", f"{tmp_path}/in tmp"), "core.1")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.parametrize("pattern", ["|/opt/mine %p", "@/run/mine.socket"])
def test_core_dumps_that_a_program_takes_cannot_be_asked_for(dumps, pattern):
    done = dumps(pattern, "x")
    assert done.returncode == 3
    name = pattern.partition(" ")[0]
    assert f"the kernel hands core dumps to {name}, which cannot be asked for them" in done.stderr


SYSTEMD = "|/usr/lib/systemd/systemd-coredump %P %u %g %s %t 9223372036854775808 %h"


@pytest.mark.parametrize(
    ("coredumpctl", "outcome"),
    [
        ("echo SIGABRT; exit 0", (0, "SIGABRT\n", "")),
        ("echo SIGABRT; echo a hint >&2; exit 0", (0, "SIGABRT\n", "")),
        ("exit 1", (0, "", "")),
        ("echo Failed to open journal >&2; exit 1", (3, "", "Failed to open journal\n")),
        ("exit 2", (3, "", "\n")),
    ],
)
def test_systemds_list_of_core_dumps_is_empty_only_if_it_says_so(dumps, coredumpctl, outcome):
    done = dumps(SYSTEMD, "x", coredumpctl=coredumpctl)
    assert (done.returncode, done.stdout, done.stderr) == outcome


@pytest.mark.parametrize("program", ["find", "awk", "sed"])
def test_a_program_that_fails_hides_no_core_dump(dumps, program):
    assert dumps("core", "core", **{program: "exit 1"}).returncode != 0


def test_what_the_guest_still_writes_is_awaited(ran, tmp_path):
    said = tmp_path / "said"
    systemctl = f"echo wait >>{said}; [ $(wc -l <{said}) -lt 3 ]"
    done = ran(breaches._SETTLE, 0, systemctl=systemctl, journalctl=f"echo journalctl $1 >>{said}")
    assert done.returncode == 0, done.stderr
    assert said.read_text().split("\n") == ["wait", "wait", "wait", "journalctl --sync", ""]
    assert abs(float(done.stdout) - time.time()) < 3600
    assert ran(breaches._SETTLE, 0, systemctl="exit 1", journalctl="exit 1").returncode == 1
