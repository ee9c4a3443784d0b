"""Keeps what a test leaves to look at, in a folder of its own."""

from __future__ import annotations

import re
import shutil
from collections.abc import Container, Iterable, Iterator
from hashlib import sha256
from itertools import chain, count
from pathlib import Path
from typing import TYPE_CHECKING

from pytest_kvm.errors import KvmError
from pytest_kvm.plugin.session import existing_run, settings_stashed

if TYPE_CHECKING:
    import pytest

    from pytest_kvm.handles.capture import Capture

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
    lines = list(copy_captures(run.captures.at_work(), folder))
    if lines:
        report.sections.append(("captures of segments", "\n".join(lines)))


def copy_captures(captures: Iterable[tuple[str, Capture]], folder: Path) -> Iterator[str]:
    """Copy captures into a folder, in place of those that are there already; yield a line for each.

    Args:
        captures: Each with a name for its file; several can have the same.
        folder: The folder, which need not exist.
    """
    targets: list[Path] = []
    for name, capture in captures:
        target = _free(folder / f"{_file_name(name)}.pcapng", taken=targets)
        try:
            if not targets:
                for old in folder.glob("*.pcapng"):
                    old.unlink()
            yield f"{target}{_copy(capture, target)}"
        except OSError as failure:
            yield f"{target.name} is not kept: {failure}"
        targets.append(target)


def _free(path: Path, *, taken: Container[Path]) -> Path:
    """Return a path, or that with the first number with which it is not taken."""
    numbered = (path.with_stem(f"{path.stem}-{number}") for number in count(2))
    return next(each for each in chain([path], numbered) if each not in taken)


def _copy(capture: Capture, target: Path) -> str:
    """Copy a capture's file as far as it has come; return why it is not whole, if it is not."""
    note = ""
    try:
        capture.flush()
    except KvmError as failure:
        note = f" ({failure})"
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(capture.path, target)
    return note


def folder_of(nodeid: str, artifacts: Path) -> Path:
    """Return the folder for what is kept of a test; no other test has the same."""
    path, _, test = nodeid.partition("::")
    name, bracket, parameters = test.partition("[")
    parts = [*path.split("/"), name.replace("::", "-") + bracket + parameters]
    return artifacts.joinpath(*map(_file_name, parts))


def _file_name(text: str) -> str:
    """Return a text if it can be a file's name; else what can be kept of it, and a digest."""
    name = _NOT_IN_NAMES.sub("-", text)[-_LONGEST_NAME:].strip("-.")
    return name if name == text else f"{name}-{sha256(text.encode(errors='surrogatepass')).hexdigest()[:8]}"
