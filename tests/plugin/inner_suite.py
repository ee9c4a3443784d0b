"""A suite on one real guest, in pytest processes of its own with a boot cache of its own."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import xml.etree.ElementTree as ET
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pytest_kvm.waiting import wait_until
from tests import other_pytest
from tests.own_cache import OwnCache
from tests.suite_process import check_gone

SUITE = """
import pytest_kvm as kvm


@kvm.guest(scope="module")
def vm():
    return kvm.GuestSpec(
        memory="512MiB", vcpus=1, prepare=["cat /proc/sys/kernel/random/uuid >/root/made"]
    )


def look(vm, record_property):
    record_property("made", vm.read_text("/root/made"))
    assert vm.run("ls /root /dev/shm").stdout.split() == ["/dev/shm:", "/root:", "made"]
    vm.run("touch /root/changed /dev/shm/changed")


def test_a(vm, record_property):
    look(vm, record_property)


def test_b(vm, record_property):
    look(vm, record_property)
"""

PAIR = """
import pytest
import pytest_kvm as kvm


@kvm.network(scope="module")
def lan():
    return kvm.NetworkSpec(subnet="10.1.0.0/24", subnet6=None)


@kvm.guest(scope="module")
def left(lan):
    return kvm.GuestSpec(memory="512MiB", vcpus=1, nics=[kvm.Nic(lan)])


@kvm.guest(scope="module")
def right(lan):
    return kvm.GuestSpec(memory="512MiB", vcpus=1, nics=[kvm.Nic(lan)])
"""
"""The beginning of a suite on two guests, `left` and `right`, on a segment `lan`."""

_WITHIN = 300


@dataclass(frozen=True, kw_only=True)
class Result:
    """What one run came to."""

    exit_code: int
    output: str
    made: set[str]
    """What the preparation of the guests that tests saw has left: a random word each time it runs."""
    ways: list[dict[str, str]]
    """Of each test, how its guest came to be and was reset."""

    @property
    def summary(self) -> str:
        """The run's last line about guests."""
        lines: list[str] = re.findall(r"^kvm: \d+ guests?, .*", self.output, re.MULTILINE)
        return lines[-1]

    def is_fine(self, *, tests: int = 2) -> bool:
        """Say whether all tests have passed."""
        return self.exit_code == 0 and f" {tests} passed in " in self.output


class InnerSuite:
    """Runs the suite.

    Args:
        folder: Empty; of the suite and its cache.
        run_dir: Parent of the runs' folders; empty, with a short path.
        outer: The cache whose images are used.
    """

    def __init__(self, folder: Path, *, run_dir: Path, outer: Path) -> None:
        self._folder = folder
        self._run_dir = run_dir
        self.cache = OwnCache(folder / "cache", outer=outer)
        (folder / "test_inner.py").write_text(SUITE)
        (folder / "pytest.ini").write_text("[pytest]\njunit_family = xunit1\nfilterwarnings = error\n")

    def run(self, *arguments: str, sabotage: str = "", within: Sequence[str] = ()) -> Result:
        """Run it to its end and return what it came to.

        Args:
            arguments: For pytest.
            sabotage: A plugin's source.
            within: A command that is given the command that runs it.
        """
        (self._folder / "sabotage.py").write_text(sabotage)
        report = self._folder / "junit.xml"
        report.unlink(missing_ok=True)
        environment = other_pytest.environment()
        places = [
            f"--kvm-cache-dir={self.cache.folder}",
            f"--kvm-run-dir={self._run_dir}",
            f"--junit-xml={report}",
        ]
        done = subprocess.run(
            [*within, sys.executable, "-m", "pytest", "-v", "-p", "sabotage", *places, *arguments],
            cwd=self._folder,
            env=environment | {"PYTHONPATH": f"{self._folder}{os.pathsep}{environment['PYTHONPATH']}"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=_WITHIN,
            check=False,
        )
        cases = list(ET.parse(report).getroot().iter("testcase")) if report.exists() else []
        ways = [
            {each.get("name", ""): each.get("value", "") for each in case.iter("property")} for case in cases
        ]
        made = {way.pop("made") for way in ways if "made" in way}
        return Result(exit_code=done.returncode, output=done.stdout, made=made, ways=ways)

    def check_nothing_runs(self) -> None:
        """Wait until nothing of a run is left: neither processes nor files."""
        wait_until(lambda: check_gone(self._run_dir), describe="the run to be gone", timeout=30)
