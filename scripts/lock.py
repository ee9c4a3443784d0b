"""Write down what ``make`` installs: each distribution by version and digest.

    python scripts/lock.py              # pyproject.toml has changed: the rest stays as it is
    python scripts/lock.py --upgrade    # today's releases

Three files, for each release of Python that the project supports: everything
(``dev.txt``), the part of it that tests need, and what packages without a wheel
are built with. pip installs them, as every contributor has it; uv resolves them.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FOLDER = Path("requirements")
DEV = FOLDER / "dev.txt"
CONTENTS = {
    DEV: ["--extra", "dev", "pyproject.toml"],
    FOLDER / "test.txt": ["--extra", "test", "--constraint", str(DEV), "pyproject.toml"],
    FOLDER / "build.txt": ["--group", "build", "--constraint", str(DEV)],
}
"""In this order: the others keep to the versions of the first."""


def main() -> int:
    """Write all of them; exit code of the first that cannot be."""
    for file, what in CONTENTS.items():
        argv = [
            *(str(Path(sys.executable).parent / "uv"), "pip", "compile", "--quiet"),
            *("--universal", "--generate-hashes", "--python-version", "3.11"),
            *("--custom-compile-command", "make lock", "--output-file", str(file)),
            *sys.argv[1:],
            *what,
        ]
        done = subprocess.run(argv, cwd=ROOT, stdout=subprocess.DEVNULL, check=False)
        if done.returncode != 0:
            return done.returncode
    return 0


if __name__ == "__main__":
    sys.exit(main())
