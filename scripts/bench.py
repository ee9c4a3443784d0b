"""Run the benchmarks one after the other, JSON into ``bench/results/``.

Each benchmark is a program of its own that takes ``--json FILE``; what they
print is shown. Name some on the command line to run only those.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "bench" / "results"
ALL = ["import_time", "admission", "cleanup", "boot", "handle", "state", "segments", "formed_cluster"]


def main() -> int:
    """Run them all, also when one fails; fail if one did."""
    RESULTS.mkdir(exist_ok=True)
    failed: list[str] = []
    for name in sys.argv[1:] or ALL:
        print(f"\n== {name}", flush=True)
        argv = [sys.executable, "-m", f"bench.{name}", "--json", str(RESULTS / f"{name}.json")]
        if subprocess.run(argv, cwd=ROOT, check=False).returncode != 0:
            failed.append(name)
    if failed:
        print(f"bench: failed: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
