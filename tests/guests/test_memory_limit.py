"""Eight workers on guests of 1 GiB, in a control group that has room for three."""

from __future__ import annotations

import os
import subprocess

import pytest

from pytest_kvm.plugin.session import settings_stashed
from scripts.folders import own_folder
from tests import other_pytest
from tests.memory_group import MemoryGroup

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


@pytest.fixture
def group():
    group = MemoryGroup("limit", 4 * GIB)
    yield group
    group.remove()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root makes control groups")
def test_no_worker_takes_more_than_there_is(pytester, tmp_path, pytestconfig, group):
    pytester.makepyfile(test_memory=SUITE)
    cache = settings_stashed(pytestconfig).cache_dir
    with own_folder("kvm-") as run_dir:
        arguments = other_pytest.arguments(cache=cache, run_dir=run_dir, limits=tmp_path / "limits")
        ran = subprocess.run(
            group.python(*arguments, "-n8"),
            capture_output=True,
            text=True,
            cwd=pytester.path,
            env=other_pytest.environment(),
            timeout=WITHIN,
            check=False,
        )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert " 16 passed" in ran.stdout
    assert group.oom_kills == 0
