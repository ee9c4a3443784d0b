"""A pytest process of its own with one test and a template in the cache."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Literal

from pytest_kvm.settings import Settings

_SUITE = Path(__file__).with_name("warm_suite.py")
First = Literal["agent", "ssh"]


def warm_start(settings: Settings, *, first: First) -> dict[str, float]:
    """Run one test whose guest is cloned, and return the seconds between what happened.

    Args:
        settings: Where the cache is.
        first: What the test does first, and alone: asks the agent or runs a command over SSH.
    """
    with tempfile.TemporaryDirectory(prefix="kvm-bench-") as name:
        folder = Path(name)
        # A copy, so that pytest finds no configuration but the defaults.
        shutil.copy(_SUITE, folder / "test_warm.py")
        marks_file = folder / "marks.json"
        environment = {
            **os.environ,
            "BENCH_MARKS": str(marks_file),
            "PYTEST_KVM_CACHE_DIR": str(settings.cache_dir),
            "PYTEST_KVM_RUN_DIR": str(settings.run_dir),
            "PYTEST_KVM_POOL": "0",
        }
        argv = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"test_warm.py::test_{first}"]
        began = time.monotonic()
        ended = subprocess.run(argv, cwd=folder, env=environment, capture_output=True, text=True, check=False)
        marks: dict[str, float] = json.loads(marks_file.read_text()) if marks_file.exists() else {}
        if ended.returncode != 0:
            raise SystemExit(f"bench: the warm start's test failed:\n{ended.stdout}{ended.stderr}")
        return {
            f"process to {first}": marks["answered"] - began,
            f"request to {first}": marks["answered"] - marks["asked"],
            f"teardown after {first}": marks["removed"] - marks["done"],
            f"process with {first}": time.monotonic() - began,
        }
