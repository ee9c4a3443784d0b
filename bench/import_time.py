"""What loading the plugin adds to every pytest run: ``import pytest_kvm.plugin``.

A fresh interpreter that has pytest already imports the plugin; the median of
many such runs is compared with the aim. No test asserts it: it is wall-clock.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path

AIM_MS = 20.0

CHILD = """
import sys, time
import pytest, _pytest.config
before, begin, cpu = set(sys.modules), time.perf_counter(), time.process_time()
import pytest_kvm.plugin
print((time.perf_counter() - begin) * 1000, (time.process_time() - cpu) * 1000)
print(*sorted({name.split(".")[0] for name in set(sys.modules) - before} - {"pytest_kvm"}))
"""


def measure(rounds: int) -> tuple[list[float], list[float], list[str]]:
    """Return wall and processor milliseconds of each import, and the packages it pulled in."""
    times: list[float] = []
    cpu_times: list[float] = []
    packages: list[str] = []
    for _ in range(rounds):
        argv = [sys.executable, "-c", CHILD]
        took, pulled = subprocess.run(argv, capture_output=True, text=True, check=True).stdout.splitlines()
        wall, cpu = map(float, took.split())
        times.append(wall)
        cpu_times.append(cpu)
        packages = pulled.split()
    return times, cpu_times, packages


def main() -> None:
    """Print the table, and write JSON where asked."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=21)
    parser.add_argument("--json", type=Path, help="write the figures here too")
    arguments = parser.parse_args()
    measure(2)  # byte code and page cache
    times, cpu_times, packages = measure(arguments.rounds)
    figures = {
        "import_ms_median": round(statistics.median(times), 2),
        "import_ms_min": round(min(times), 2),
        "import_ms_max": round(max(times), 2),
        "import_cpu_ms_median": round(statistics.median(cpu_times), 2),
        "aim_ms": AIM_MS,
        "rounds": len(times),
        "packages": packages,
    }
    median = figures["import_ms_median"]
    print(f"import pytest_kvm.plugin: {median} ms (median of {len(times)}, aim ≤ {AIM_MS} ms)")
    print(f"  fastest {figures['import_ms_min']} ms, slowest {figures['import_ms_max']} ms")
    print(f"  of the processor: {figures['import_cpu_ms_median']} ms, whatever else the machine does")
    print(f"  brings in: {' '.join(packages) or 'nothing new'}")
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
