"""The README holds on a machine that has nothing yet; see scripts/fresh.py."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from scripts import fresh


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can enter another root filesystem")
@pytest.mark.timeout(2 * fresh.TIMEOUT)
@pytest.mark.parametrize("suite", fresh.SUITES)
def test_the_demo_in_a_minimal_debian(suite, project_root):
    argv = [sys.executable, "-m", "scripts.fresh", suite]
    done = subprocess.run(argv, cwd=project_root, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{done.stdout[-8000:]}\n{done.stderr[-8000:]}"
    assert f"fresh: {suite}: the README holds" in done.stdout
