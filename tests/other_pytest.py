"""Pytest processes of their own that tests start, with this checkout's plugin."""

from __future__ import annotations

import os
from pathlib import Path

from scripts.check import EVENTS

_CHECKOUT = Path(__file__).parents[1]


def arguments(*, cache: Path, run_dir: Path, limits: Path) -> list[str]:
    """Return the arguments after the interpreter's path that run pytest.

    Args:
        cache: The cache that it uses.
        run_dir: The parent of its runs' folders.
        limits: The folder that says whose guests it counts.
    """
    places = [f"--kvm-cache-dir={cache}", f"--kvm-run-dir={run_dir}", f"--kvm-limits-dir={limits}"]
    return ["-m", "pytest", "-p", "no:cacheprovider", *places]


def environment() -> dict[str, str]:
    """Return our environment, in which this checkout's plugin is found, without what this pytest put there.

    But for the file that events are written to, and the name of the test, which is written with each.
    """
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("PYTEST_") or name in (EVENTS, "PYTEST_CURRENT_TEST")
    }
    return kept | {"PYTHONPATH": str(_CHECKOUT)}
