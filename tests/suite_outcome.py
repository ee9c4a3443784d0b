"""How a suite that runs in a process of its own has ended, test by test."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from pathlib import Path

from pytest_kvm.settings import Settings
from scripts.folders import own_folder
from tests.suite_process import suites_in


class Outcome:
    """How a suite has ended.

    Args:
        junit: The file of its outcomes.
        shown: What it has written.
    """

    def __init__(self, junit: Path, shown: str) -> None:
        self.cases = {case.attrib["name"]: case for case in ET.parse(junit).iter("testcase")}
        self.shown = shown

    def names(self, kind: str) -> set[str]:
        """Return the names of the tests with a failure, an error or a skip."""
        return {name for name, case in self.cases.items() if case.find(kind) is not None}

    def text(self, name: str, kind: str) -> str:
        """Return message and text of a test's failure or error."""
        found = self.cases[name].find(kind)
        assert found is not None, self.shown
        return f"{found.get('message')}\n{found.text}"


def outcome_of(source: str, *, folder: Path, settings: Settings) -> Outcome:
    """Run a suite on clones of this run's templates, and return how it has ended; it keeps no artifacts."""
    junit = folder / "junit.xml"
    with (
        own_folder("kvm-") as run_dir,
        suites_in(folder, run_dir=run_dir, settings=settings) as suites,
    ):
        suite = suites.start(source, f"--junit-xml={junit}", "--kvm-keep-artifacts=never")
        suite.wait()
        return Outcome(junit, suite.output)
