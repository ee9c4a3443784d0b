"""The example suites pass on real guests, alone and under xdist, and leave nothing.

The quickstart is a test of the core.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from pytest_kvm.host.run_folder import RUNS
from scripts.folders import own_folder


@pytest.fixture
def run_dir():
    """A parent for run folders that is short and this test's own; somebody keeps notes in there."""
    with own_folder("kvm-") as folder:
        notes = Path(folder, RUNS, "notes")
        notes.mkdir(parents=True)
        notes.parent.chmod(0o700)
        (notes / "file").write_text("kept")
        yield folder
        assert (notes / "file").read_text() == "kept"


@pytest.fixture
def suite(pytester, project_root, run_dir):
    """Run an example suite as its reader would, in a pytest process of its own."""

    def run(name, *arguments):
        shutil.copytree(project_root / "example_suites" / name, pytester.path, dirs_exist_ok=True)
        result = pytester.runpytest_subprocess("-v", f"--kvm-run-dir={run_dir}", *arguments, timeout=900)
        left = {path.name for path in (run_dir / RUNS).iterdir()}
        assert left == {"guard", "notes"}, "the run left files, or removed those of others"
        result.stdout.fnmatch_lines(
            [f"kvm: not made by pytest-kvm and left alone: {run_dir / RUNS / 'notes'}*"]
        )
        return result

    return run


def test_packages(suite):
    suite("packages").assert_outcomes(passed=2)


def test_several_guests_under_xdist(suite):
    suite("several_guests", "-n", "2").assert_outcomes(passed=2)
