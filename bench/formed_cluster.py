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
KEPT = (
    "@kvm.lab_template\ndef formed(",
    '@pytest.fixture(scope="module")\ndef cluster(formed):\n    return Cluster(*formed.guests)',
)
PLAIN = "def cluster(formed, one, two, three):\n    return Cluster(one, two, three)"
ONCE = ('@pytest.fixture(scope="module")\ndef formed(', f'@pytest.fixture(scope="module")\n{PLAIN}')
EACH = ("@pytest.fixture\ndef formed(", f"@pytest.fixture\n{PLAIN}")
"""How the suite's two fixtures begin: as they are, formed once in a run, formed by each test."""
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
    first: float
    """From its start until the first test's end."""
    a_test: float
    """Each test but the first."""


def conftest(fixtures: tuple[str, str]) -> str:
    """Return the suite's conftest.py with other beginnings of its two fixtures."""
    text = (SUITE / "conftest.py").read_text()
    for was, becomes in zip(KEPT, fixtures, strict=True):
        if text.count(was) != 1:
            raise SystemExit(f"{SUITE / 'conftest.py'} has not once: {was}")
        text = text.replace(was, becomes)
    return text


def suite(text: str, *, tests: int, cache_dir: Path) -> Took:
    """Run the tests on one kind of cluster."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "conftest.py").write_text(text)
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
        return Took(whole, ends[0] - began, (ends[-1] - ends[0]) / (tests - 1))


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

    kinds = {"kept": conftest(KEPT), "once": conftest(ONCE), "each": conftest(EACH)}
    cache_dir = settings_from([from_environment]).cache_dir
    suite(kinds["kept"], tests=2, cache_dir=cache_dir)  # makes the templates
    measured: dict[str, list[Took]] = {kind: [] for kind in kinds}
    for _ in range(options.rounds):
        for kind, text in kinds.items():
            measured[kind].append(suite(text, tests=options.tests, cache_dir=cache_dir))

    ratios = [a.whole / b.whole for a, b in zip(measured["once"], measured["each"], strict=True)]
    table = Table(title=f"{options.tests} tests on a cluster of three, median of {options.rounds}")
    for column in ("formed", "whole suite, s", "first test, s", "a test, s"):
        table.add_column(column)
    for name, runs in measured.items():
        whole, first, a_test = (statistics.median(column) for column in zip(*runs, strict=True))
        table.add_row(name, f"{whole:.1f}", f"{first:.1f}", f"{a_test:.2f}")
    ratio = statistics.median(ratios)
    table.add_row("once / each", f"{ratio:.2f} (aim {AIM})", "", "")
    Console().print(table)
    if options.json is not None:
        options.json.write_text(json.dumps({"ratios": ratios, **measured}, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
