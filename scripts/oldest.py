"""Run the tests that need no guest on the oldest versions that ``pyproject.toml`` allows.

    python scripts/oldest.py [ARGUMENT OF PYTEST ...]

A lower bound is a promise to users, and is wrong as soon as nobody tries it. The
environment is a temporary one, of the oldest Python that is supported and here.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TESTS = ("tests/unit", "tests/libvirt")


def main() -> int:
    """Make the environment and run the tests in it; their exit code."""
    uv = str(Path(sys.executable).parent / "uv")
    with tempfile.TemporaryDirectory(prefix="oldest-") as folder:
        python = str(Path(folder, "bin", "python"))
        steps = (
            [uv, "venv", "--quiet", "--no-python-downloads", "--python", ">=3.11", folder],
            [
                *(uv, "pip", "install", "--quiet", "--python", python),
                *("--resolution", "lowest-direct", "--editable", f"{ROOT}[test]"),
            ],
            [python, "-m", "pytest", "-q", "-p", "no:cacheprovider", *TESTS, *sys.argv[1:]],
        )
        for step in steps:
            done = subprocess.run(step, cwd=ROOT, check=False)
            if done.returncode != 0:
                return done.returncode
    return 0


if __name__ == "__main__":
    sys.exit(main())
