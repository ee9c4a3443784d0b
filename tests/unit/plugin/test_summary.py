"""The last line of a run and the properties of its tests, from events that the suites make up."""

from __future__ import annotations

import json
import os
import re
import time
import xml.etree.ElementTree as ET
from datetime import datetime
from types import SimpleNamespace

import pytest

from pytest_kvm.boot_cache.inventory import Inventory

CONFTEST = """
import pytest
from pytest_kvm.plugin.session import record_of
from pytest_kvm.provision.events import Event


@pytest.fixture(scope="session")
def tell(pytestconfig):
    def tell(kind, tier, seconds, why="", guest="web", **more):
        event = Event(guest=guest, kind=kind, tier=tier, seconds=seconds, why=why, **more)
        record_of(pytestconfig).tell(event)
    return tell


@pytest.fixture(scope="session")
def web(tell):
    tell("boot", "cold", 41.23, "no template yet", for_template=True)
    tell("clone", "cow", 0.711)
"""

TESTS = """
def test_a(web, tell):
    tell("clone", "cow", 0.5, "from the boot cache", guest="database")

def test_b(web, tell):
    tell("savepoint", None, 0.444, "before test_b")
    tell("reset", "pool", 0.1, "after test_a")

def test_c(web, tell):
    tell("reset", "load", 0.3, "after test_b")

def test_d(web, tell):
    tell("reset", "load", 0.32, "after test_c")
"""

COSTLY = """
def test_e(tell):
    tell("image", None, 40, "debian-13 with jq")
    tell("failure", None, 12.34, "KernelPanicked", guest="sick")
    tell("reboot", None, 9.5)
"""

LINE = "kvm: 2 guests, 1 cold boot 41.2 s, 2 clones median 0.61 s, 1 savepoint 0.44 s, 3 resets median 0.30 s"

LINE_OF_TWO = (
    "kvm: 4 guests, 2 cold boots median 41.2 s, 4 clones median 0.61 s, "
    "2 savepoints median 0.44 s, 6 resets median 0.30 s"
)


@pytest.fixture
def run(pytester):
    def run(*arguments):
        pytester.makeconftest(CONFTEST)
        pytester.makepyfile(TESTS)
        return pytester.runpytest(f"--kvm-cache-dir={pytester.path}", *arguments).stdout

    return run


STANDS_ON = ["kvm: accelerator *", "kvm: uri *"]


def lines_of(output):
    return re.findall(r"^kvm: \d.*", output.str(), re.MULTILINE)


def test_one_line_sums_up(run):
    output = run()
    assert lines_of(output) == [LINE]
    output.no_fnmatch_line("*guests (pytest-kvm)*")


def test_v_tells_of_each_guest_and_each_way(run):
    run("-v").fnmatch_lines(
        [
            "*guests (pytest-kvm)*",
            "web: 1 cold boot 41.2 s (no template yet)",
            "web: 1 cow clone 0.71 s",
            "database: 1 cow clone 0.50 s (from the boot cache)",
            "web: 1 savepoint 0.44 s",
            "web: 1 pool reset 0.10 s",
            "web: 2 load resets median 0.31 s",
            LINE,
        ],
        consecutive=True,
    )


def test_vv_tells_of_each_event(run):
    run("-vv").fnmatch_lines(
        [
            "web: boot cold 41.23 s (no template yet) in *::test_a",
            "web: clone cow 0.71 s in *::test_a",
            "database: clone cow 0.50 s (from the boot cache) in *::test_a",
            "web: savepoint 0.44 s (before test_b) in *::test_b",
            "web: reset pool 0.10 s (after test_a) in *::test_b",
            "web: reset load 0.30 s (after test_b) in *::test_c",
            "web: reset load 0.32 s (after test_c) in *::test_d",
            LINE,
        ],
        consecutive=True,
    )


DERIVED = """
def test_f(web, tell):
    tell("template", None, 6.12, "no template yet", guest="router", for_template=True)
    tell("clone", "cow", 0.8, guest="router")
    tell("boot", "cold", 40, "no template yet", guest="client", for_template=True)
    tell("template", None, 6.14, "no template yet", guest="client", for_template=True)
    tell("clone", "cow", 0.9, guest="client")
    for each in range(2):
        tell("boot", "cold", 40, "cold boots were asked for", guest="again")
"""


def test_templates_that_are_derived_are_told_as_part_of_a_start(run, pytester):
    pytester.makepyfile(test_derived=DERIVED)
    run("-v", "test_derived.py").fnmatch_lines(
        [
            "router: 1 derived template 6.12 s (no template yet)",
            "router: 1 cow clone 0.80 s",
            "client: 1 cold boot 40.0 s (no template yet)",
            "client: 1 derived template 6.14 s (no template yet)",
            "client: 1 cow clone 0.90 s",
            "again: 2 cold boots median 40.0 s (cold boots were asked for)",
            "kvm: 5 guests, 4 cold boots *, 2 derived templates median 6.13 s, 3 clones *",
        ],
        consecutive=True,
    )
    run("-vv", "test_derived.py").fnmatch_lines(["router: template 6.12 s (no template yet) in *::test_f"])


def test_image_builds_failed_boots_and_reboots_are_told_as_well(run, pytester):
    pytester.makepyfile(test_costly=COSTLY)
    output = run("-v", "test_costly.py")
    output.fnmatch_lines(
        [
            "web: 1 image build 40.0 s (debian-13 with jq)",
            "sick: 1 failed boot 12.3 s (KernelPanicked)",
            "web: 1 reboot 9.50 s",
            "kvm: 0 guests, 1 image build 40.0 s, 1 failed boot 12.3 s, 1 reboot 9.50 s",
        ],
        consecutive=True,
    )
    run("-vv", "test_costly.py").fnmatch_lines(
        [
            "web: image build 40.00 s (debian-13 with jq) in test_costly.py::test_e",
            "sick: failed boot 12.34 s (KernelPanicked) in test_costly.py::test_e",
            "web: reboot 9.50 s in test_costly.py::test_e",
        ],
        consecutive=True,
    )


def test_each_event_is_a_line_of_a_file(run, pytester):
    file = pytester.path / "events.jsonl"
    for _ in range(2):  # what is there stays there
        run(f"--kvm-events={file}", "-n2", "--dist=loadfile")
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    assert len(lines) == 2 * 7
    (slow,) = [line for line in lines[:7] if line["why"] == "after test_c"]
    assert slow["test"].endswith("::test_d")
    assert slow["within"].endswith("::test_each_event_is_a_line_of_a_file")
    assert datetime.fromisoformat(slow["at"]).timestamp() == pytest.approx(time.time(), abs=600)
    assert slow["pid"] != os.getpid()
    named = ("guest", "kind", "tier", "seconds", "spec")
    assert [slow[name] for name in named] == ["web", "reset", "load", 0.32, ""]
    assert {line["worker"] for line in lines} <= {"gw0", "gw1"}


def test_a_file_that_cannot_be_written_ends_the_run_at_once(pytester):
    pytester.makepyfile("def test(): pass")
    done = pytester.runpytest(f"--kvm-events={pytester.path}")
    assert done.ret == pytest.ExitCode.USAGE_ERROR
    done.stderr.fnmatch_lines([f"ERROR: events cannot be written to {pytester.path}: Is a directory"])


def test_quiet_runs_and_runs_without_guests_say_nothing(run, pytester):
    assert lines_of(run("-q")) == []
    assert lines_of(run("--collect-only")) == []
    assert lines_of(run("--deselect", "test_quiet_runs_and_runs_without_guests_say_nothing.py")) == []


def test_workers_are_summed_up_once(run):
    output = run("-n", "2", "--dist", "each", "-v")
    assert lines_of(output) == [LINE_OF_TWO]
    output.fnmatch_lines([*STANDS_ON, LINE_OF_TWO])  # this process has collected nothing
    output.fnmatch_lines_random(["[[]gw0[]] web: 2 load resets median 0.31 s"])
    output.fnmatch_lines_random(["[[]gw1[]] web: 2 load resets median 0.31 s"])


def test_what_is_not_ours_is_named_once(run, pytester):
    foreign = [pytester.path / "kvm-runs" / "5ca1ab1e", pytester.path / "templates" / "entries" / "notes"]
    for folder in foreign:
        folder.mkdir(parents=True)
        (folder / "file").touch()
    output = run(f"--kvm-run-dir={pytester.path}")
    output.fnmatch_lines(
        [LINE, f"kvm: not made by pytest-kvm and left alone: {foreign[0]}, {foreign[1]}"], consecutive=True
    )
    assert output.str().count("left alone") == 1


def test_of_much_that_is_not_ours_some_is_named_and_all_is_plain(run, pytester):
    entries = pytester.path / "templates" / "entries"
    entries.mkdir(parents=True)
    for number in range(12):
        (entries / f"\033[2J\nkvm: {number:02d}").touch()
    (line,) = re.findall("^kvm: not made by.*", run().str(), re.MULTILINE)
    assert f"{entries}/?kvm: 09, 2 more" in line
    assert "\033" not in line


def test_a_folder_that_cannot_be_looked_at_is_named(run, pytester):
    (pytester.path / "images" / "names").mkdir(parents=True)
    (pytester.path / "images" / "names" / "mine.json").write_text("{")
    (pytester.path / "kvm-runs").write_text("a file")
    run(f"--kvm-run-dir={pytester.path}").fnmatch_lines(
        ["kvm: not made by pytest-kvm and left alone: */kvm-runs cannot be read: *, */mine.json is not an*"]
    )


def test_templates_that_were_used_are_counted(run, monkeypatch):
    now = time.time() + 60
    templates = (
        SimpleNamespace(last_used=now, size=300 * 1024**2),
        SimpleNamespace(last_used=now, size=112 * 1024**2),
        SimpleNamespace(last_used=now - 3600, size=1024**3),
    )
    monkeypatch.setattr(Inventory, "list", lambda self: templates)
    assert lines_of(run()) == [LINE + ", 2 cache entries 412 MiB"]


def test_a_cache_that_cannot_be_read_is_told(run, pytester):
    (pytester.path / "templates").touch()
    assert lines_of(run()) == [
        LINE + f", the boot cache {pytester.path}/templates cannot be made: File exists"
    ]


def test_a_cache_that_fails_is_told(run, pytester):
    (lock := pytester.path / "templates" / "locks" / "index").mkdir(parents=True)
    assert lines_of(run()) == [LINE + f", the boot cache fails: [Errno 21] Is a directory: '{lock}'"]


def test_a_cache_that_is_off_is_not_looked_at(run, pytester):
    (pytester.path / "templates").touch()
    assert lines_of(run("--kvm-cache=off")) == [LINE]


def test_properties_of_each_test(run, pytester):
    run("--junit-xml=junit.xml")
    found = {
        case.get("name"): [(each.get("name"), each.get("value")) for each in case.iter("property")]
        for case in ET.parse(pytester.path / "junit.xml").getroot().iter("testcase")
    }
    assert found == {
        "test_a": [],
        "test_b": [
            ("kvm_savepoint_web", "0.44 s (before test_b)"),
            ("kvm_reset_web", "pool 0.10 s (after test_a)"),
        ],
        "test_c": [("kvm_reset_web", "load 0.30 s (after test_b)")],
        "test_d": [("kvm_reset_web", "load 0.32 s (after test_c)")],
    }
