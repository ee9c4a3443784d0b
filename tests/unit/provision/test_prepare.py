"""Prepare steps run in order, and the one that fails is named."""

from __future__ import annotations

from pathlib import Path

import pytest

import pytest_kvm as kvm
from pytest_kvm.errors import CommandTimeout, PrepareFailed, SshUnavailable
from pytest_kvm.provision.prepare import interpreter_of, run_steps
from tests.fakes import FakeDomain, FakeShell, LocalShell, fake_machine, output


@pytest.fixture
def told():
    return []


@pytest.fixture
def run(tmp_path, told):
    """Run steps with commands that really run, on this machine."""

    def run(*steps, shell=None, domain=None):
        shell = shell or LocalShell({}, folder=tmp_path / "programs")
        machine = fake_machine(tmp_path, domain=domain or FakeDomain(), shell=shell)
        run_steps(machine, kvm.GuestSpec(prepare=steps).prepare, on_step=told.append)

    return run


@pytest.fixture
def trace(tmp_path):
    """File that steps write to."""
    return tmp_path / "trace"


def test_steps_run_in_order_and_are_told(run, told, trace):
    run(
        f"echo one >>{trace}",
        ["sh", "-c", 'echo "$1" >>"$2"', "sh", "two  words", str(trace)],
        kvm.Script(f"set -e\n\n# a comment\necho three >>{trace}\necho four >>{trace}\n"),
    )
    assert trace.read_text() == "one\ntwo  words\nthree\nfour\n"
    assert [line.partition(":")[0] for line in told] == [f"prepare step {n} of 3" for n in (1, 2, 3)]
    assert told[0].endswith(f"`echo one >>{trace}`")
    assert told[2].endswith(f"script `echo three >>{trace}`")


def test_a_script_reads_nothing_of_itself_and_leaves_nothing_behind(run, trace):
    run(kvm.Script(f'cat >{trace}; echo "$0" >>{trace}; cat "$0" >>{trace}'))
    script, _, text = trace.read_text().partition("\n")
    assert text.startswith(f"cat >{trace}")
    assert not Path(script).exists()


def test_a_scripts_exit_code_counts(run):
    with pytest.raises(PrepareFailed) as caught:
        run(kvm.Script("echo before; echo wrong >&2; exit 7"))
    assert "web: prepare step 1 of 1 (script `echo before; echo wrong >&2; exit 7`): exit code 7" in str(
        caught.value
    )
    assert "before" in caught.value.details
    assert "wrong" in caught.value.details


def test_a_script_of_the_host(run, tmp_path, trace):
    file = tmp_path / "setup.py"
    file.write_text(f"#!/usr/bin/env python3\nopen({str(trace)!r}, 'w').write('from Python')\n")
    run(kvm.Script(file=file))
    assert trace.read_text() == "from Python"


def test_the_rest_is_not_run_after_a_failure(run, told, trace):
    with pytest.raises(PrepareFailed, match="prepare step 2 of 3 .*exit code 3"):
        run("true", "exit 3", f"touch {trace}")
    assert len(told) == 2
    assert not trace.exists()


@pytest.mark.parametrize(
    ("script", "words"),
    [
        (kvm.Script("echo"), ["/bin/sh"]),
        (kvm.Script("#!/usr/bin/python3\n"), ["/usr/bin/python3"]),
        (kvm.Script("#! /bin/sed -n -f\r\n"), ["/bin/sed", "-n -f"]),
        (kvm.Script("#!\necho"), ["/bin/sh"]),
        (kvm.Script("#!/usr/bin/python3\n", interpreter="/bin/bash"), ["/bin/bash"]),
    ],
)
def test_who_reads_a_script(script, words):
    assert interpreter_of(script, script.content.encode()) == words


def test_a_step_that_takes_too_long_shows_what_it_wrote(run):
    shell = FakeShell(connected=True)
    shell.expect("sleep", CommandTimeout("too long", result=output("halfway", exit_code=-1)))
    with pytest.raises(PrepareFailed) as caught:
        run("sleep 999", shell=shell)
    assert "step 1 of 1 (`sleep 999`) did not end within 300 s" in caught.value.brief
    assert "halfway" in caught.value.details


def test_a_connection_that_breaks_off_is_told_with_the_step(run):
    shell = FakeShell(connected=True)
    shell.expect("ip link", SshUnavailable("the connection was lost", details="sshd said"))
    with pytest.raises(PrepareFailed, match=r"step 1 of 1 \(`ip link .*: the connection was lost") as caught:
        run("ip link set eth0 down", shell=shell)
    assert caught.value.details == "sshd said"


def test_a_guest_that_dies_ends_the_step(run):
    shell, domain = FakeShell(connected=True), FakeDomain()
    shell.expect("echo c", shell.hang)
    domain.end("QEMU died: killed")
    with pytest.raises(PrepareFailed, match=r"ended \(QEMU died: killed\) while waiting for prepare step 1"):
        run("echo c >/proc/sysrq-trigger", shell=shell, domain=domain)


def test_a_host_file_that_went_missing_is_told(run, tmp_path):
    with pytest.raises(PrepareFailed, match="missing → /opt/x.*No such file"):
        run(kvm.HostFile(tmp_path / "missing", "/opt/x"))
