"""Keeps what a test leaves to look at, in a folder of its own."""

from __future__ import annotations

import re
import shutil
from collections import Counter
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING

from pytest_kvm.errors import KvmError
from pytest_kvm.plugin.session import existing_run, settings_stashed

if TYPE_CHECKING:
    import pytest

_NOT_IN_NAMES = re.compile(r"[^A-Za-z0-9_.\-\[\]]+")
_LONGEST_NAME = 120


def record_segments(item: pytest.Item) -> None:
    """Begin to capture all segments that there are, for a test that is about to begin."""
    run = existing_run(item.config)
    if run is not None:
        run.captures.record(run.segments.all())


def keep_captures(item: pytest.Item, report: pytest.TestReport) -> None:
    """Keep the captures of a test whose set-up or call is over, if it is to be kept; never fail the test."""
    run, settings = existing_run(item.config), settings_stashed(item.config)
    if run is None or settings.capture == "never" or report.when == "teardown":
        return
    if not (report.failed or (settings.capture == "always" and report.when == "call")):
        return
    folder = folder_of(item.nodeid, settings.artifacts)
    lines: list[str] = []
    numbers: Counter[str] = Counter()
    for name, capture in run.captures.at_work():
        numbers[name] += 1
        suffix = f"-{numbers[name]}" if numbers[name] > 1 else ""
        target = folder / f"{_file_name(name)}{suffix}.pcapng"
        try:
            capture.flush()
            folder.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(capture.path, target)
        except (OSError, KvmError) as failure:
            lines.append(f"{target.name} is not kept: {failure}")
        else:
            lines.append(str(target))
    if lines:
        report.sections.append(("captures of segments", "\n".join(lines)))


def folder_of(nodeid: str, artifacts: Path) -> Path:
    """Return the folder for what is kept of a test; no other test has the same."""
    path, _, test = nodeid.partition("::")
    name, bracket, parameters = test.partition("[")
    names = [*path.split("/"), name.replace("::", "-") + bracket + parameters]
    return artifacts.joinpath(*map(_file_name, names))


def _file_name(text: str) -> str:
    """Return a text if it can be a file's name; else what can be kept of it, and a digest."""
    name = _NOT_IN_NAMES.sub("-", text)[-_LONGEST_NAME:].strip("-.")
    return name if name == text else f"{name}-{sha256(text.encode()).hexdigest()[:8]}"
