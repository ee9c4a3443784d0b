"""libvirt's embedded driver and a real QEMU, as root and as an ordinary user.

A process can have one embedded driver, and the test run has its own: so each
case is a process. Whatever it prints to stderr fails it: libvirt's messages
must not reach a terminal.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
import pytest

from scripts.folders import own_folder

CASES = Path(__file__).with_name("embed_cases.py")
SOMEBODY = 54321


@pytest.fixture(scope="module", params=["root", "ordinary"] if os.geteuid() == 0 else ["ordinary"])
def user(request):
    """User id; an ordinary user runs the tests only as himself."""
    return {"root": 0, "ordinary": SOMEBODY if os.geteuid() == 0 else os.geteuid()}[request.param]


@contextmanager
def short_folder(user):
    """Make a folder that belongs to the user, with a path short enough for sockets."""
    with own_folder("kvm-") as parent:
        parent.chmod(0o711)
        folder = parent / "h"
        folder.mkdir(mode=0o700)
        if os.geteuid() == 0:
            os.chown(folder, user, user)
        yield folder


@pytest.fixture(scope="module")
def cache(user):
    """Each user's capability cache: asking QEMU takes longer than all the rest."""
    with short_folder(user) as folder:
        yield folder


@pytest.fixture
def place(user):
    with short_folder(user) as folder:
        yield folder
        left = [
            other for other in psutil.process_iter(["cmdline"]) if str(folder) in str(other.info["cmdline"])
        ]
        for process in left:
            process.kill()
        assert [process.name() for process in left if process.status() != psutil.STATUS_ZOMBIE] == []


@pytest.fixture
def start(user, place, cache, project_root):
    """Run one case and return what it printed."""

    def started(case, *, status=0):
        argv = [sys.executable, CASES, case, place / "run", cache]
        if os.geteuid() == 0 and user != 0:
            argv = [
                "setpriv",
                f"--reuid={user}",
                f"--regid={user}",
                "--clear-groups",
                "--inh-caps=-all",
                *argv,
            ]
        environment = {
            "PATH": os.environ["PATH"],
            "HOME": str(place),
            "PYTHONPATH": str(project_root),
            "PYTHONDONTWRITEBYTECODE": "1",
        }
        ran = subprocess.run(argv, env=environment, capture_output=True, text=True, timeout=180, check=False)
        assert (ran.returncode, ran.stderr) == (status, ""), ran.stderr
        return ran.stdout

    return started


@pytest.mark.parametrize(
    "case",
    [
        *("life", "same_name", "death", "told_to_quit", "bad_start", "many", "one_root", "fork"),
        *("one_try", "interrupted"),
        *("stopped", "hung"),
        *("snapshots", "snapshots_refused", "revived"),
    ],
)
def test_embedded_driver(start, case):
    start(case)


def test_a_process_that_was_killed_leaves_a_domain_that_another_finds_and_ends(start):
    left = json.loads(start("abandon", status=-signal.SIGKILL))
    # With guests of its own this process is a subreaper, and so the orphan's
    # parent: whoever destroys it waits until it is reaped.
    threading.Thread(target=_reap, args=(left,), daemon=True).start()
    assert json.loads(start("adopt")) == left
    assert not psutil.pid_exists(left) or psutil.Process(left).status() == psutil.STATUS_ZOMBIE


def _reap(pid):
    with suppress(ChildProcessError):
        os.waitpid(pid, 0)


def test_what_qemu_can_do_is_asked_once_for_all_runs(start, place, cache):
    start("one_root")
    known = {file: file.stat().st_mtime_ns for file in (cache / "libvirt").glob("*.xml")}
    assert known
    (place / "run").rename(place / "first")
    start("one_root")
    assert known == {file: file.stat().st_mtime_ns for file in (cache / "libvirt").glob("*.xml")}
