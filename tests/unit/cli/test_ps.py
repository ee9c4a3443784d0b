"""``pytest-kvm ps``, from runs and processes to what it prints."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import subprocess
import sys
import tempfile
from dataclasses import replace

import psutil
import pytest

from pytest_kvm.cli.main import main
from pytest_kvm.host import folder_marker, run_folder, run_records, run_survey
from pytest_kvm.host.run_folder import held_run_folder
from pytest_kvm.waiting import NotYet, wait_until
from tests.unit.host.machine_folders import RECORD, RUNNING, machine


@pytest.fixture
def run(parent):
    """The folder of a run that lives."""
    with held_run_folder(parent, command="pytest -n2 tests", started_in="/home/me", worker="gw0") as folder:
        yield folder


@pytest.fixture
def ps(parent, capsys, alone):
    def ps(*arguments):
        """Return what the command prints."""
        assert main(["--kvm-run-dir", str(parent), "ps", *arguments]) == 0
        return capsys.readouterr().out

    return ps


@pytest.fixture
def look(ps, parent):
    def look():
        """Return what is known of the one run in the folder."""
        (found,) = (
            each for each in json.loads(ps("--json"))["runs"] if each["folder"].startswith(f"{parent}/")
        )
        return found

    return look


def test_a_run_with_its_test_and_its_guest(run, look, ps):
    run_records.write_test(run, "tests/test_x.py::test_a")
    with machine(run) as qemu:
        found = look()
        (guest,) = found["guests"]
        text = ps()
    assert found["run"] == run.name
    assert found["is_live"]
    assert found["pid"] == os.getpid()
    assert found["test"] == "tests/test_x.py::test_a"
    assert found["test_seconds"] >= 0
    assert (guest["guest"], guest["state"], guest["pid"]) == ("web", "running", qemu.pid)
    assert guest["cpu_percent"] is not None
    assert guest["memory_used_mib"] > 0
    assert f"run {run.name} of {psutil.Process().username()}: pid {os.getpid()}, worker gw0, for " in text
    assert "\n  pytest -n2 tests  in /home/me\n  tests/test_x.py::test_a for " in text
    assert "\n  web: running for " in text
    assert "of 512 MiB, vcpus=1, debian-13, QEMU " in text
    assert f"\n      {guest['ssh_command']}\n" in text
    assert guest["ssh_command"].startswith("ssh -F none -i /run/key -p 2222 ")


def test_a_test_that_waits_for_room(run, look, ps):
    run_records.write_test(
        run, "tests/test_x.py::test_a", waits_for="waiting for room for a guest of 1 GiB: …"
    )
    assert look()["waits_for"] == "waiting for room for a guest of 1 GiB: …"
    assert "\n  tests/test_x.py::test_a is waiting for room for a guest of 1 GiB: …, for " in ps()


@pytest.mark.parametrize("state", ["starting", "spare", "template"])
def test_what_is_no_guest_of_a_test_yet_has_no_way_to_log_in(run, look, ps, state):
    with machine(run, record=replace(RECORD, state=state)):
        (guest,) = look()["guests"]
        assert (guest["state"], guest["ssh_command"]) == (state, None)
        assert "ssh -F" not in ps()


def test_each_machine_has_its_own_process(run, look):
    with machine(run) as first, machine(run, "web+2") as second, machine(run, "we") as third:
        pids = [guest["pid"] for guest in look()["guests"]]
    assert pids == [third.pid, first.pid, second.pid]


def test_a_guest_that_is_off(run, look, ps):
    with machine(run, is_on=False):
        (guest,) = look()["guests"]
        assert (guest["state"], guest["pid"], guest["ssh_command"]) == ("off", None, None)
        assert "\n  web: off, 512 MiB, vcpus=1, debian-13\n" in f"{ps()}\n"


def test_a_qemu_that_is_stopped(run, look, ps):
    with machine(run) as qemu:
        qemu.send_signal(signal.SIGSTOP)

        def is_told():
            (guest,) = look()["guests"]
            if guest["state"] != "stopped":
                raise NotYet(guest["state"])

        wait_until(is_told, describe="the stop", timeout=20)
        assert "web: stopped by a signal, " in ps()


def test_a_run_that_has_ended_is_named_and_left(parent, look, ps):
    left = parent / run_folder.RUNS / "5ca1ab1e"
    with held_run_folder(parent):
        folder_marker.make(left)
        found = next(line for line in ps().splitlines() if str(parent) in line)
    assert found == f"  left in {parent}: the run has ended, and the next one there removes it"
    assert left.exists()


def test_a_run_of_an_earlier_boot_says_when_it_began(parent, look, ps):
    left = parent / run_folder.RUNS / "5ca1ab1e"
    with held_run_folder(parent):
        pass
    folder_marker.make(left, boot="another", since="1.0")
    assert look()["seconds"] is None
    assert f", since {look()['time']}\n" in ps()


def test_a_run_in_another_container(run, parent, look, ps, monkeypatch):
    ours = run_folder.host_facts()
    monkeypatch.setattr(run_folder, "host_facts", lambda: {**ours, "processes": "pid:[1]"})
    with machine(run, is_on=False):
        assert look()["guests"][0]["state"] == "running", "as its record says"
        assert f"on {ours['host']}, in another container: pid" in ps()


def test_a_record_that_was_made_to_deceive(run, ps):
    run_records.write_test(run, "tests/x.py::\x1b]0;title\x07a\nb")
    with machine(run, record=replace(RUNNING, guest="\x1b[2Jweb", user="-oProxyCommand=reboot;")):
        text = ps()
    assert "\x1b" not in text
    assert "ssh -F" not in text
    assert "tests/x.py::a?b for" in text


def test_a_folder_that_somebody_keeps_locked_is_named(run, parent, ps, monkeypatch):
    monkeypatch.setattr(run_survey, "_WITHIN", 0.1)
    with (run.parent / "guard").open() as guard:
        fcntl.flock(guard, fcntl.LOCK_EX)
        assert f"\n{parent}: timed out" in ps()


def test_what_is_no_run_hides_no_run(run, look):
    (run.parent / "deadbeef").touch()
    (run.parent / "0ddba110" / folder_marker.MARKER).mkdir(parents=True)
    (run.parent / "5ca1ab1e").symlink_to("5ca1ab1e")
    assert look()["run"] == run.name


def test_a_lock_that_somebody_has_removed_hides_no_run(run, look):
    (run.parent / "guard").unlink()
    assert look()["run"] == run.name


@pytest.mark.parametrize("since", ["-inf", "nan", "1" + "0" * 400, "soon"])
def test_a_marker_that_was_made_to_break_it(run, ps, since):
    for path, entries in [
        (run / folder_marker.MARKER, {"since": since, "command": "\ud800"}),
        (run / run_records.TEST, {"test": "x", "since": float("-inf")}),
    ]:
        content = json.loads(path.read_text()) if path.exists() else {}
        path.write_text(json.dumps({**content, **entries}))
    assert f"run {run.name} of" in ps()
    assert "\\ud800" in ps()


def test_a_folder_without_runs_gets_nothing(parent, ps):
    ps()
    assert list(parent.iterdir()) == []
    (parent / run_folder.RUNS).mkdir()
    ps()
    assert list((parent / run_folder.RUNS).iterdir()) == [], "not even a lock, which its user could not open"


def test_runs_in_other_folders_are_found_by_their_watchers(run, capsys):
    with tempfile.TemporaryDirectory(prefix="kvm-", dir="/var/tmp") as other:
        assert main(["--kvm-run-dir", other, "ps"]) == 0
    assert f"run {run.name} of" in capsys.readouterr().out


def test_a_folder_that_may_not_be_entered_is_named(run, parent):
    """The superuser may enter all, so that another user has to look."""
    as_somebody = ["setpriv", "--reuid=54321", "--regid=54321", "--clear-groups"] if os.geteuid() == 0 else []
    argv = [*as_somebody, sys.executable, "-m", "pytest_kvm", "--kvm-run-dir", str(parent), "ps"]
    parent.chmod(0)
    try:
        environment = {**os.environ, "HOME": "/nonexistent"}
        done = subprocess.run(argv, capture_output=True, text=True, check=True, env=environment)
    finally:
        parent.chmod(0o700)
    assert f"\n{parent}: Permission denied" in done.stdout


def test_watching_goes_on_until_ctrl_c(run, parent):
    with machine(run) as qemu:
        argv = [sys.executable, "-m", "pytest_kvm", "--kvm-run-dir", str(parent), "ps", "--watch"]
        with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as watching:
            seen = ""
            while seen.count(f"QEMU {qemu.pid}") < 2:
                line = watching.stdout.readline()
                assert line, "it has ended"
                seen += line
            watching.send_signal(signal.SIGINT)
            watching.stdout.read()
            assert watching.wait(20) == 130
