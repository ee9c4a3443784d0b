"""``.ci/run`` and ``make check``."""

from __future__ import annotations

import shlex
import signal
import subprocess
import sys

import psutil
import pytest

from pytest_kvm.waiting import NotYet, wait_until
from scripts import check, folders

PREFIX = "pytest-kvm-check-"

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


NAMING = [
    "FAILED tests/a.py::test_b - ValueError: c",
    "ERROR tests/a.py",
    "lint: mypy: exit code 1 (3.1 s)",
    "pytest_kvm/a.py:12: error: x",
    "/x/pytest_kvm/a.py:12:3 - error: x",
    "docs/a.md:3: WARNING: undefined label",
    "setup: this needs root",
    "leftovers: process 7: qemu",
]
SILENT = [
    "kvm: accelerator tcg (no KVM: error: no)",
    "ERROR    pytest_kvm:boot.py:7 a line of a test's log",
    "make: *** [x] Error 1",
    "leftovers: nothing left",
]


def test_the_lines_that_say_what_failed_are_repeated_at_the_end(monkeypatch):
    said = shlex.join([*NAMING, *SILENT])
    (step,) = steps_of(monkeypatch, tests=f"printf '%s\\n' {said}; exit 1")
    assert step.why == tuple(NAMING)
    first, *others = str(step).splitlines()
    assert first.startswith("check: tests: FAILED (")
    assert [line.strip() for line in others] == NAMING


def test_many_are_counted(monkeypatch):
    (step,) = steps_of(monkeypatch, tests="seq -f 'FAILED %g' 23; exit 1")
    assert str(step).endswith("    FAILED 20\n    and 3 more, see above")


def test_a_step_that_passes_has_nothing_to_say(monkeypatch):
    (step,) = steps_of(monkeypatch, tests="echo 'FAILED to fail'")
    assert step.why == ()


def test_pytest_cuts_no_line_of_its_summary(monkeypatch, tmp_path):
    (tmp_path / "test_a.py").write_text(f"def test_b():\n    raise ValueError({'long ' * 60!r})\n")
    argv = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", str(tmp_path)]
    monkeypatch.setattr(check, "STEPS", {"tests": argv})
    (step,) = check.steps()
    (line,) = step.why
    assert line.endswith(f"test_a.py::test_b - ValueError: {'long ' * 60}".strip())


def test_a_step_that_hangs_is_ended_with_all_it_started(monkeypatch, tmp_path):
    monkeypatch.setattr(check, "LIMIT", 3.0)
    (step,) = steps_of(monkeypatch, tests=f"sleep 600 & echo $! >{tmp_path}/pid; wait")
    assert not step.passed
    assert "it was ended after" in step.why[-1]
    wait_until(ended(tmp_path / "pid"), describe="the end of what the step started", timeout=30)


def ended(pid_file):
    """A condition: the process of that file is gone."""

    def look():
        pid = int(pid_file.read_text())
        if psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
            raise NotYet(f"process {pid} runs")

    return look


def started(pid_file):
    """A condition: a process has written its id there."""

    def look():
        if not pid_file.exists() or not pid_file.read_text().endswith("\n"):
            raise NotYet("it has not started")

    return look


INTERRUPTED = """
import signal, sys
from scripts import check
signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in what a shell runs in the background
check.STEPS = {{"tests": ["sh", "-c", "sleep 600 & echo $! >{pid}; wait"]}}
sys.exit(check.main())
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_whoever_ends_it_ends_what_it_has_started(tmp_path, project_root, number):
    pid = tmp_path / "pid"
    argv = [sys.executable, "-c", INTERRUPTED.format(pid=pid)]
    with subprocess.Popen(argv, cwd=project_root, stderr=subprocess.PIPE) as process:
        try:
            wait_until(started(pid), describe="the step", timeout=60)
            process.send_signal(number)
            process.communicate(timeout=60)
        finally:
            process.terminate()
    wait_until(ended(pid), describe="the end of what the step started", timeout=30)


ENDED = """
import sys
from pathlib import Path
from scripts import check, folders
check.ROOT, folders.PARENT = Path("{root}"), Path("{clones}")
sys.exit(check.main())
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_the_check_of_a_clone_ends_with_us(checkout, tmp_path, project_root, monkeypatch, number):
    pid = tmp_path / "pid"
    root = checkout(f"echo $$ >{pid}; exec sleep 600")
    argv = [sys.executable, "-c", ENDED.format(root=root, clones=tmp_path), "--clone"]
    with subprocess.Popen(argv, cwd=project_root) as process:
        wait_until(started(pid), describe="the check", timeout=60)
        process.send_signal(number)
        process.wait(timeout=60)
    wait_until(ended(pid), describe="its end", timeout=30)
    assert not (root / ".git" / "checked").exists()
    left = list(tmp_path.glob(f"{PREFIX}*"))
    assert len(left) == (number == signal.SIGKILL)
    strange, linked = tmp_path / f"{PREFIX}strange", tmp_path / f"{PREFIX}linked"
    strange.mkdir()
    linked.symlink_to(root)
    (root / folders.LOCK).touch()
    monkeypatch.setattr(folders, "PARENT", tmp_path)
    folders.remove_killed(PREFIX)
    assert set(tmp_path.glob(f"{PREFIX}*")) == {strange, linked}
    assert (root / ".ci").exists()


def test_the_clone_of_a_living_check_stays(checkout, tmp_path, monkeypatch):
    code = "from pathlib import Path; from scripts import folders; folders.PARENT = Path('../..')"
    code += f"; folders.remove_killed('{PREFIX}')"
    look = f'PYTHONPATH={check.ROOT} {sys.executable} -c "{code}"'
    root = checkout(f"{look} && test -e ../{folders.LOCK}")
    monkeypatch.setattr(folders, "PARENT", tmp_path)
    assert check.check_clone() == 0
    assert (root / ".git" / "checked").exists()


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
    root = checkout(
        'test -n "$XDG_CACHE_HOME" && test ! -e "$XDG_CACHE_HOME" && pwd'
        # Everybody may get there, as a test runs as an ordinary user.
        ' && test "$(stat -c %A ..)" = drwxr-xr-x'
    )
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
