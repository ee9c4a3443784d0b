"""The example suites pass on real guests, alone and under xdist, and leave nothing."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

import pytest


@pytest.fixture
def run_dir():
    """A parent for run folders that is short and this test's own."""
    with tempfile.TemporaryDirectory(prefix="kvm-", dir="/var/tmp") as folder:
        yield Path(folder)


@pytest.fixture
def suite(pytester, project_root, run_dir):
    """Run an example suite as its reader would, in a pytest process of its own."""

    def run(name, *arguments):
        shutil.copytree(project_root / "example_suites" / name, pytester.path, dirs_exist_ok=True)
        result = pytester.runpytest_subprocess("-v", f"--kvm-run-dir={run_dir}", *arguments, timeout=900)
        assert [path.name for path in run_dir.iterdir()] == ["guard"], "the run left files"
        return result

    return run


def test_quickstart(suite):
    result = suite("quickstart")
    result.assert_outcomes(passed=5)
    result.stdout.fnmatch_lines(["kvm: machine: ready after * s"])


def test_packages(suite):
    suite("packages").assert_outcomes(passed=2)


def test_several_guests_under_xdist(suite):
    suite("several_guests", "-n", "2").assert_outcomes(passed=2)
