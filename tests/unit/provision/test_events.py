"""The file of events: what stands in a line, and what becomes of a disk that is full."""

from __future__ import annotations

import json
import logging
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from pytest_kvm.errors import HostError
from pytest_kvm.provision.events import Event, EventLog

EVENT = Event(guest="web", kind="boot", tier="cold", seconds=41.5, why="no template yet", spec="GuestSpec()")


def test_a_line_says_what_happened_when_for_which_test_and_where(tmp_path, monkeypatch):
    file = tmp_path / "events.jsonl"
    monkeypatch.setenv("PYTEST_CURRENT_TEST", "tests/test_outer.py::test_suite (call)")
    log = EventLog(file)
    log.tell(EVENT)
    monkeypatch.setenv("PYTEST_CURRENT_TEST", "test_inner.py::test_it[a (b)] (setup)")
    log.tell(EVENT)
    first, second = (json.loads(line) for line in file.read_text().splitlines())
    assert (first["within"], first["test"]) == ("tests/test_outer.py::test_suite", "")
    assert (second["within"], second["test"]) == (
        "tests/test_outer.py::test_suite",
        "test_inner.py::test_it[a (b)]",
    )
    assert second["at"].endswith("+00:00")
    assert {name: second[name] for name in ("guest", "kind", "tier", "seconds", "why", "spec")} == {
        "guest": "web",
        "kind": "boot",
        "tier": "cold",
        "seconds": 41.5,
        "why": "no template yet",
        "spec": "GuestSpec()",
    }


def test_what_is_in_the_file_stays_and_no_line_breaks_another(tmp_path):
    file = tmp_path / "events.jsonl"
    file.write_text('{"kind": "former"}\n')
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(EventLog(file).tell, [EVENT] * 200))
    kinds = [json.loads(line)["kind"] for line in file.read_text().splitlines()]
    assert kinds == ["former", *["boot"] * 200]


def test_a_file_that_cannot_be_written_is_told_before_anything_happens(tmp_path):
    with pytest.raises(HostError, match=f"events cannot be written to {tmp_path}: Is a directory"):
        EventLog(tmp_path)


def test_a_full_disk_costs_the_event_and_no_test(tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        EventLog(Path("/dev/full")).tell(EVENT)
    assert "an event is missing in /dev/full: [Errno 28] No space left on device" in caplog.text
