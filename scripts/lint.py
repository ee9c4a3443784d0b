"""Run every linter, show what each found, fail if one did.

All of them run even when an early one fails: one run tells everything.
"""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BIN = Path(sys.executable).parent

LINTERS = {
    "ruff check": ["ruff", "check", "--quiet", "--output-format=concise"],
    "ruff format": ["ruff", "format", "--check", "--output-format=concise"],
    "mypy": ["mypy", "--no-error-summary"],
    "basedpyright": ["basedpyright", "--warnings"],
    "import-linter": ["lint-imports", "--no-logo", "--no-cache"],
    "codespell": ["codespell", "."],
    "zizmor": ["zizmor", "--offline", "--quiet", ".github"],
}
"""What a reader calls the check, and the command that is it."""


def main() -> int:
    """Run the linters named on the command line, or all."""
    chosen = sys.argv[1:] or list(LINTERS)
    failed = [name for name in chosen if not passes(name)]
    if failed:
        print(f"lint: failed: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


def passes(name: str) -> bool:
    """Run one linter, show its output if it complains, and its time."""
    program, *arguments = LINTERS[name]
    begin = time.monotonic()
    done = subprocess.run([BIN / program, *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
    verdict = "ok" if done.returncode == 0 else f"exit code {done.returncode}"
    print(f"lint: {name}: {verdict} ({time.monotonic() - begin:.1f} s)", flush=True)
    if done.returncode != 0:
        print(done.stdout + done.stderr, flush=True)
    return done.returncode == 0


if __name__ == "__main__":
    sys.exit(main())
