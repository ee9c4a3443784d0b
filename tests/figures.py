"""What tests have measured, for people: shown at the end of a run, whichever worker measured it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Protocol

FIGURES = "figures"
"""The property of a test's report that has it."""


class Report(Protocol):
    """What is read of pytest's report of a test."""

    nodeid: str
    user_properties: list[tuple[str, object]]


def figures_in(reports: Iterable[Report]) -> Iterator[str]:
    """Yield a line for each figure."""
    for report in reports:
        for name, value in report.user_properties:
            if name == FIGURES:
                yield f"{report.nodeid}: {value}"
