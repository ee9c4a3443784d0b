"""A suite on the cluster of ``example_suites/etcd_cluster``: formed once, against formed by each test.

Both times the same tests run in a pytest process of their own, and the templates
are there. Between tests the guests are reset: to the formed cluster, or to how
they became ready, and then each test forms its own.

once / each    seconds of the whole process, those of the first divided by those of the second
a test         seconds from the end of the first test to the end of the last, by their number
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

from rich.console import Console
from rich.table import Table

from pytest_kvm.options import from_environment, settings_from

AIM = 0.25
SUITE = Path(__file__).resolve().parent.parent / "example_suites" / "etcd_cluster"
ONCE = '@pytest.fixture(scope="module")\ndef cluster('
EACH = "@pytest.fixture\ndef cluster("
TESTS = """
import json
import os
import time
from pathlib import Path

import pytest

ENDS = []


@pytest.mark.parametrize("number", range(int(os.environ["BENCH_TESTS"])))
def test_each_finds_the_cluster_formed(cluster, number):
    node = cluster.nodes[number % 3]
    assert node.run(["etcdctl", "get", "--print-value-only", "number"]).stdout == ""
    node.run(["etcdctl", "put", "number", str(number)])
    ENDS.append(time.monotonic())
    Path(os.environ["BENCH_MARKS"]).write_text(json.dumps(ENDS))
"""


class Took(NamedTuple):
    """Seconds."""

    whole: float
    """The whole process."""
    a_test: float
    """Each test but the first."""


def suite(conftest: str, *, tests: int, cache_dir: Path) -> Took:
    """Run the tests on one kind of cluster."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "conftest.py").write_text(conftest)
        Path(folder, "test_cluster.py").write_text(TESTS)
        marks = Path(folder, "marks")
        environment = os.environ | {"BENCH_TESTS": str(tests), "BENCH_MARKS": str(marks)}
        argv = [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-p",
            "no:cacheprovider",
            f"--kvm-cache-dir={cache_dir}",
        ]
        began = time.monotonic()
        subprocess.run([*argv, folder], env=environment, check=True, stdout=sys.stderr)
        whole = time.monotonic() - began
        ends: list[float] = json.loads(marks.read_text())
        return Took(whole, (ends[-1] - ends[0]) / (tests - 1))


def main() -> int:
    """Measure, and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tests", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    if options.tests < 2:
        parser.error("--tests: at least 2, for the first one is not like the others")

    once = (SUITE / "conftest.py").read_text()
    if once.count(ONCE) != 1:
        raise SystemExit(f"{SUITE / 'conftest.py'} has no module-scoped fixture named cluster")
    each = once.replace(ONCE, EACH)
    cache_dir = settings_from([from_environment]).cache_dir
    suite(once, tests=2, cache_dir=cache_dir)  # makes the template
    measured: dict[str, list[Took]] = {"once": [], "each": []}
    for _ in range(options.rounds):
        measured["once"].append(suite(once, tests=options.tests, cache_dir=cache_dir))
        measured["each"].append(suite(each, tests=options.tests, cache_dir=cache_dir))

    ratios = [a.whole / b.whole for a, b in zip(measured["once"], measured["each"], strict=True)]
    table = Table(title=f"{options.tests} tests on a cluster of three, median of {options.rounds}")
    for column in ("formed", "whole suite, s", "a test, s"):
        table.add_column(column)
    for name, runs in measured.items():
        whole, a_test = (statistics.median(column) for column in zip(*runs, strict=True))
        table.add_row(name, f"{whole:.1f}", f"{a_test:.2f}")
    ratio = statistics.median(ratios)
    table.add_row("once / each", f"{ratio:.2f} (aim {AIM})", "")
    Console().print(table)
    if options.json is not None:
        options.json.write_text(json.dumps({"ratios": ratios, **measured}, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
