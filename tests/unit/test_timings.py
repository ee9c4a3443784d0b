"""What this project's own runs say at their end about the time on guests."""

from __future__ import annotations

import json

import pytest

from pytest_kvm.options import OPTIONS
from scripts import check
from tests import timings

EVENTS = [
    {"kind": "image", "seconds": 40.0, "guest": "", "why": "debian-13"},
    {"kind": "boot", "seconds": 30.0, "guest": "vm", "why": "no template yet", "spec": "GuestSpec()"},
    {"kind": "boot", "seconds": 50.0, "guest": "db", "why": "", "spec": f"GuestSpec(vcpus=2, {'x' * 300})"},
    {"kind": "clone", "seconds": 1.0, "guest": "vm", "why": ""},
    {"kind": "reboot", "seconds": 9.0, "guest": "vm", "why": "", "within": "t.py::outer"},
]


@pytest.fixture
def events(tmp_path, monkeypatch):
    """Return the file that all processes of a run write to."""
    file = tmp_path / "events.jsonl"
    monkeypatch.setenv(check.EVENTS, str(file))
    return file


@pytest.fixture
def run(pytester, monkeypatch, project_root):
    monkeypatch.setenv("PYTHONPATH", str(project_root))

    def run(test="def test(): pass", *arguments):
        pytester.makepyfile(test)
        return pytester.runpytest_subprocess("-p", "tests.timings", *arguments)

    return run


def test_the_table_counts_and_sums_up_and_names_what_is_expensive(events, run):
    filled = [{"spec": "", "test": "t.py::test_a", "within": "", **event} for event in EVENTS]
    events.write_text("".join(json.dumps(event) + "\n" for event in filled))
    run().stdout.fnmatch_lines(
        [
            "*= where the time on guests went =*",
            "                      count   seconds   median",
            "image build               1      40.0    40.00",
            "cold boot                 2      80.0    40.00",
            "clone                     1       1.0     1.00",
            "reboot                    1       9.0     9.00",
            "",
            "   40.0 s  image build (debian-13)  t.py::test_a",
            "   50.0 s  cold boot GuestSpec(vcpus=2, […]  t.py::test_a",
            "   30.0 s  cold boot GuestSpec() (no template yet)  t.py::test_a",
            "    9.0 s  reboot vm  t.py::outer > t.py::test_a",
        ],
        consecutive=True,
    )


WRITES = """
import json, os

def test():
    event = dict(kind="boot", seconds=30.0, guest="vm", why="", spec="GuestSpec()", test="t", within="")
    with open(os.environ["PYTEST_KVM_EVENTS"], "a") as file:
        file.write(json.dumps(event) + "\\n")
"""


@pytest.mark.parametrize("workers", ["-n0", "-n1"])
def test_a_run_has_a_file_of_its_own(run, workers):
    run(WRITES, workers).stdout.fnmatch_lines(["cold boot                 1      30.0    30.00"])


def test_a_run_without_guests_has_no_table(run):
    run().stdout.no_fnmatch_line("*where the time*")


def test_the_events_of_another_user_are_added(events, tmp_path):
    (tmp_path / "other").write_text("b\n")
    events.write_text("a\n")
    timings.add(tmp_path / "other")
    assert events.read_text() == "a\nb\n"


def test_the_variable_is_that_of_the_option():
    assert check.EVENTS in {option.variable for option in OPTIONS}
