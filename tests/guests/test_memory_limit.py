"""Eight workers on guests of 1 GiB, in a control group that has room for three."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from pytest_kvm.host.cgroups import CGROUPS
from pytest_kvm.plugin.session import settings_stashed
from scripts.folders import own_folder

_CHECKOUT = Path(__file__).parents[2]
WITHIN = 580
GIB = 1024**3

SUITE = """
import pytest
import pytest_kvm as kvm

@kvm.guest
def machine():
    return kvm.GuestSpec(memory="1GiB", vcpus=1)

@pytest.mark.parametrize("number", range(16))
def test_takes_its_memory(machine, number):
    taken = machine.run(["python3", "-c", "print(len(b'x' * (700 << 20)))"])
    assert taken.stdout.strip() == str(700 << 20)
"""

ENTER = "import os, sys; open(sys.argv[1], 'w').write(str(os.getpid())); os.execv(sys.argv[2], sys.argv[2:])"
"""Has a process enter a control group before it becomes another program."""


class MemoryGroup:
    """A new control group whose processes may have so many bytes of memory together."""

    def __init__(self, limit):
        controllers = CGROUPS / "cgroup.controllers"
        version_2 = controllers.exists() and "memory" in controllers.read_text().split()
        self._folder = (CGROUPS if version_2 else CGROUPS / "memory") / f"pytest-kvm-test-{os.getpid()}"
        self._events = self._folder / ("memory.events" if version_2 else "memory.oom_control")
        self._folder.mkdir()
        (self._folder / ("memory.max" if version_2 else "memory.limit_in_bytes")).write_text(str(limit))
        self.procs = self._folder / "cgroup.procs"

    @property
    def oom_kills(self):
        """How many processes the kernel has killed for want of memory."""
        words = dict(line.split() for line in self._events.read_text().splitlines())
        return int(words["oom_kill"])

    def remove(self):
        self._folder.rmdir()


@pytest.fixture
def group():
    try:
        group = MemoryGroup(4 * GIB)
    except OSError as failure:
        pytest.skip(f"no control group can be made here: {failure}")
    yield group
    group.remove()


def test_no_worker_takes_more_than_there_is(pytester, tmp_path, pytestconfig, group):
    pytester.makepyfile(test_memory=SUITE)
    cache = settings_stashed(pytestconfig).cache_dir
    with own_folder("kvm-") as run_dir:
        arguments = [
            *("-m", "pytest", "-p", "no:cacheprovider", "-n8", f"--kvm-cache-dir={cache}"),
            *(f"--kvm-run-dir={run_dir}", f"--kvm-limits-dir={tmp_path}/limits"),
        ]
        ran = subprocess.run(
            [sys.executable, "-c", ENTER, str(group.procs), sys.executable, *arguments],
            capture_output=True,
            text=True,
            cwd=pytester.path,
            env={**os.environ, "PYTHONPATH": str(_CHECKOUT)},
            timeout=WITHIN,
            check=False,
        )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert " 16 passed" in ran.stdout
    assert group.oom_kills == 0
