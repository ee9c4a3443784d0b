"""A pytest plugin for this project's own runs: says where the time on guests went.

``-p tests.timings``, as ``make test`` has it. Many tests run pytest themselves;
the product's file of events has what all of these did. Boots that a test ends
by force are not in it, nor guests without pytest-kvm's plugin.
"""

from __future__ import annotations

import json
import os
import statistics
import textwrap
from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from pytest_kvm.provision.events import WORDS
from scripts.check import EVENTS, one_file_of_events

LISTED = ("image", "boot", "failure", "template", "reboot")
"""What costs so much that each is named, with its test."""

WIDTH = 200
"""Characters of a spec that are written: some hold whole files."""


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    """Have all processes of the run write into one file, before any of them reads its options."""
    if EVENTS not in os.environ:  # it is CI's, which has the image's build in it, or a worker's
        stack = ExitStack()
        stack.enter_context(one_file_of_events())
        config.add_cleanup(stack.close)


def add(file: Path) -> None:
    """Add the events of somebody who may not write to the run's file."""
    if EVENTS in os.environ:
        with Path(os.environ[EVENTS]).open("ab") as events:
            events.write(file.read_bytes())


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Write the table, and each of what is expensive."""
    events = [json.loads(line) for line in Path(os.environ[EVENTS]).read_text().splitlines()]
    if not events:
        return
    terminalreporter.write_sep("=", "where the time on guests went")
    for line in (*table(events), "", *each(events)):
        terminalreporter.write_line(line)


def table(events: list[dict[str, Any]]) -> Iterable[str]:
    """Yield the totals by kind."""
    yield f"{'':20}{'count':>7}{'seconds':>10}{'median':>9}"
    for kind, name in WORDS.items():
        seconds = [event["seconds"] for event in events if event["kind"] == kind]
        if seconds:
            yield f"{name:20}{len(seconds):>7}{sum(seconds):>10.1f}{statistics.median(seconds):>9.2f}"


def each(events: list[dict[str, Any]]) -> Iterable[str]:
    """Yield what is expensive, with what it was and the test that caused it."""
    listed = [event for event in events if event["kind"] in LISTED]
    listed.sort(key=lambda event: (LISTED.index(event["kind"]), -event["seconds"]))
    for event in listed:
        spec = textwrap.shorten(event["spec"], WIDTH, placeholder=" […]")
        what = " ".join(filter(None, [WORDS[event["kind"]], spec or event["guest"]]))
        why = f" ({event['why']})" if event["why"] else ""
        tests = " > ".join(filter(None, [event["within"], event["test"]]))
        yield f"{event['seconds']:7.1f} s  {what}{why}  {tests}".rstrip()
