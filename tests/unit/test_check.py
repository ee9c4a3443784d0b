"""``.ci/run`` and ``make check``."""

from __future__ import annotations

import subprocess
import sys

import psutil
import pytest

from pytest_kvm.waiting import NotYet, wait_until
from scripts import check

FLAKY = """
import pathlib, pytest

@pytest.mark.parametrize("number", range({failing}))
def test_second_time_lucky(number, tmp_path_factory):
    seen = pathlib.Path("seen{{}}".format(number))
    if not seen.exists():
        seen.touch()
        raise OSError("the machine was busy")
"""


def steps_of(monkeypatch, **scripts):
    monkeypatch.setattr(check, "STEPS", {name: ["sh", "-c", script] for name, script in scripts.items()})
    return check.steps()


def test_it_ends_with_the_first_step_that_fails(monkeypatch, capsys):
    done = steps_of(monkeypatch, lint="echo fine", tests="echo no; exit 3", docs="touch /nonexistent/x")
    assert [(step.name, step.passed) for step in done] == [("lint", True), ("tests", False)]
    assert "fine\n" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("printed", "why"),
    [
        ("lint: mypy: exit code 1 (3.1 s)", "lint: mypy: exit code 1 (3.1 s)"),
        ("FAILED tests/a.py::test_b - ValueError: c", "FAILED tests/a.py::test_b - ValueError: c"),
        ("docs/a.md:3: WARNING: undefined label", "docs/a.md:3: WARNING: undefined label"),
        ("make: *** [x] Error 1\nERROR tests/a.py", "ERROR tests/a.py"),
        ("only this", ""),
    ],
)
def test_the_first_line_that_says_why_is_kept(monkeypatch, printed, why):
    (step,) = steps_of(monkeypatch, tests=f"printf '%s\\n' '{printed}' 'FAILED later'; exit 1")
    assert step.why == (why or "FAILED later")
    assert str(step).startswith(f"check: tests: FAILED: {step.why} (")


def test_a_step_that_hangs_is_ended_with_all_it_started(monkeypatch, tmp_path):
    monkeypatch.setattr(check, "LIMIT", 3.0)
    (step,) = steps_of(monkeypatch, tests=f"sleep 600 & echo $! >{tmp_path}/pid; wait")
    assert not step.passed
    assert "it was ended after" in step.why
    pid = int((tmp_path / "pid").read_text())

    def gone():
        if psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
            raise NotYet(f"process {pid} runs")

    wait_until(gone, describe="the end of what the step started", timeout=30)


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """A checkout whose check is what a test says."""
    root = tmp_path / "checkout"

    def made(script):
        (root / ".ci").mkdir(parents=True)
        (root / ".ci" / "run").write_text(f"#!/bin/sh\n{script}\n")
        (root / ".ci" / "run").chmod(0o755)
        git = ["git", "-C", str(root), "-c", "user.name=x", "-c", "user.email=x@example.org"]
        for argv in (["init", "-q"], ["add", "."], ["commit", "-q", "-m", "check: x"]):
            subprocess.run([*git, *argv], check=True)
        monkeypatch.setattr(check, "ROOT", root)
        return root

    return made


def test_a_clone_that_passes_is_written_down(checkout, capfd):
    root = checkout('test -n "$XDG_CACHE_HOME" && test ! -e "$XDG_CACHE_HOME" && pwd')
    (root / "new").touch()
    assert check.check_clone() == 0
    tree = subprocess.run(
        ["git", "-C", root, "rev-parse", "HEAD^{tree}"], stdout=subprocess.PIPE, text=True, check=True
    ).stdout
    assert (root / ".git" / "checked").read_text() == tree
    said = capfd.readouterr().out
    assert "what is not committed is not checked" in said
    assert str(root) not in said


def test_one_that_fails_is_not(checkout):
    root = checkout("exit 7")
    assert check.check_clone() == 7
    assert not (root / ".git" / "checked").exists()


@pytest.mark.parametrize(("failing", "code"), [(2, 0), (3, 1)])
@pytest.mark.parametrize("workers", [[], ["-n2"]], ids=["alone", "workers"])
def test_second_tries_are_told_and_counted(pytester, project_root, monkeypatch, failing, code, workers):
    monkeypatch.setenv("PYTHONPATH", str(project_root))
    pytester.makepyfile(FLAKY.format(failing=failing))
    argv = [sys.executable, "-m", "pytest", "-p", "tests.retries", "--reruns=1", *workers]
    result = pytester.run(*argv)
    assert result.ret == code
    result.stdout.fnmatch_lines(
        ["*= tried again =*", "test_*.py::test_second_time_lucky[[]0]: OSError: the machine was busy"]
        if not workers
        else ["*= tried again =*", "*OSError: the machine was busy"]
    )
