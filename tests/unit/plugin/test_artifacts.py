"""When guests are kept, under which name, and who is told."""

from __future__ import annotations

import json
import re
import shutil
import xml.etree.ElementTree as ET

import pytest

import pytest_kvm as kvm
from pytest_kvm.errors import BootFailed
from pytest_kvm.handles.transcript import Transcript
from pytest_kvm.host.folder_marker import MARKER
from pytest_kvm.machine import evidence, vitals
from pytest_kvm.machine.evidence import Evidence
from pytest_kvm.machine.vitals import Trouble
from tests.unit.plugin.kernels import Kernels

FAILS = """
def test_it():
    assert "mine" == "other"
"""
PASSES = "def test_it(): pass"
SKIPS = """
import pytest

def test_it():
    pytest.skip("no reason")
"""
XFAILS = f"import pytest\n@pytest.mark.xfail{FAILS}"
FAILS_TWICE = """
import pytest

@pytest.fixture
def fails_late():
    yield
    assert "late" == "other"

def test_it(fails_late):
    assert "mine" == "other"
"""
TEARDOWN = """
import pytest

@pytest.fixture
def first(request):
    yield
    request.config.told.append("first is torn down")

@pytest.fixture
def second(first, request):
    yield
    request.config.told.append("second fails")
    pytest.fail("second")

@pytest.fixture
def third(first, request):
    yield
    request.config.told.append("third fails")
    raise LookupError("third")

def test_it(second, third):
    pass
"""
PAUSED = Trouble(guest="web", what="does not answer: it is paused")


@pytest.fixture
def run(pytester, machine, domain, monkeypatch):
    """Run a suite of a test that uses one guest, and return its result."""

    def find_trouble(_machine, *, can_dump, before_dump):
        if can_dump and before_dump is not None:
            before_dump()
        return PAUSED

    monkeypatch.setattr(vitals, "find_trouble", find_trouble)
    machine.console.log.write_text("hello\n")
    domain.picture = b"P6 1 1 255\n\0\0\0"

    def run(source, *options, machines=(machine,), boot_failures=()):
        pytester.makepyfile(test_suite=source)
        kernels = Kernels(kvm.GuestSpec(), machines=machines, boot_failures=boot_failures)
        return pytester.runpytest_inprocess("-p", "no:cacheprovider", *options, plugins=[kernels])

    return run


@pytest.fixture
def kept(pytester):
    """Return what is kept of tests: the relative paths of the files."""

    def kept(place="kvm-artifacts"):
        files = [path for path in (pytester.path / place).rglob("*") if path.is_file()]
        return {str(path.relative_to(pytester.path / place)) for path in files}

    return kept


def about_of(pytester, place="test_suite.py/test_it"):
    return json.loads((pytester.path / "kvm-artifacts" / place / "about.json").read_text())


def test_a_failure_leaves_its_text_and_its_guests(run, kept, pytester):
    result = run(FAILS)
    place = "test_suite.py/test_it"
    assert kept() >= {f"{place}/about.json", f"{place}/failure.txt", f"{place}/web/console.log"}
    result.stdout.fnmatch_lines(
        ["*- artifacts -*", f"{pytester.path}/kvm-artifacts/{place}/web: screenshot.png, *"]
    )
    failure = (pytester.path / "kvm-artifacts" / place / "failure.txt").read_text()
    assert "AssertionError" in failure
    assert "web does not answer: it is paused" in failure
    about = about_of(pytester)
    assert about["test"] == "test_suite.py::test_it"
    (failed,) = about["failures"]
    assert failed["phase"] == "call"
    assert failed["error"].startswith("AssertionError: assert 'mine' == 'other'")
    assert about["guests"]["web"]["trouble"] == "does not answer: it is paused"
    assert about["guests"]["web"]["spec"] == "GuestSpec()"
    assert (pytester.path / "kvm-artifacts/last").resolve() == pytester.path / "kvm-artifacts" / place


@pytest.mark.parametrize("source", [PASSES, SKIPS, XFAILS])
def test_nothing_is_kept_without_a_failure(run, kept, source):
    run(source)
    assert kept() == set()


@pytest.mark.parametrize("source", [PASSES, SKIPS, XFAILS])
def test_all_tests_are_kept_if_that_is_asked_for(run, kept, source, pytester):
    result = run(source, "--kvm-keep-artifacts=always", "-rA")
    assert "test_suite.py/test_it/web/domain.xml" in kept()
    assert "test_suite.py/test_it/failure.txt" not in kept()
    result.stdout.no_fnmatch_line("*- web -*")
    assert about_of(pytester)["failures"] == []


def test_nothing_is_kept_if_that_is_asked_for(run, kept):
    result = run(FAILS, "--kvm-keep-artifacts=never")
    assert kept() == set()
    result.stdout.no_fnmatch_line("*- artifacts -*")


def test_call_and_teardown_can_both_fail(run, kept, pytester):
    run(FAILS_TWICE).assert_outcomes(failed=1, errors=1)
    place = "test_suite.py/test_it"
    assert kept() >= {f"{place}/web/domain.xml", f"{place}/in-teardown/web/domain.xml"}
    assert [each["phase"] for each in about_of(pytester)["failures"]] == ["call", "teardown"]
    assert "late" in (pytester.path / "kvm-artifacts" / place / "failure-in-teardown.txt").read_text()


def test_a_rerun_has_a_folder_of_its_own(run, kept):
    run(FAILS, "--reruns=1")
    assert kept() >= {"test_suite.py/test_it/web/domain.xml", "test_suite.py/test_it~2/web/domain.xml"}
    run(FAILS)
    assert not any("~2" in path for path in kept())


def test_guests_are_looked_at_as_soon_as_a_teardown_fails(run, kept, monkeypatch):
    told = []
    keep = Evidence.keep

    def note_and_keep(self, trouble):
        told.append("the guest is looked at")
        keep(self, trouble)

    monkeypatch.setattr(Evidence, "keep", note_and_keep)
    monkeypatch.setattr(Kernels, "pytest_configure", lambda self, config: setattr(config, "told", told))
    run(TEARDOWN).assert_outcomes(passed=1, errors=1)
    assert told == ["third fails", "the guest is looked at", "second fails", "first is torn down"]
    assert "test_suite.py/test_it/web/domain.xml" in kept()


def test_a_folder_that_cannot_be_made_is_told(run, pytester):
    (pytester.path / "there").write_text("no folder")
    result = run(FAILS, "--kvm-artifacts=there")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*- artifacts -*", "nothing is kept: *Not a directory*"])
    result.stdout.no_fnmatch_line("*could not find out everything*")


def test_a_mistake_of_ours_hides_nothing(run, monkeypatch):
    def keep(self, trouble):
        raise ZeroDivisionError("by us")

    monkeypatch.setattr(Evidence, "keep", keep)
    result = run(FAILS)
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(
        ["web does not answer: it is paused", "*could not find out everything*", "ZeroDivisionError: by us"]
    )


def test_the_oldest_are_removed_if_all_take_up_too_much(run, kept, monkeypatch):
    run(FAILS, "--kvm-artifacts-size=1KiB")
    run(FAILS.replace("test_it", "test_other"), "--kvm-artifacts-size=1KiB")
    assert {path.split("/")[1] for path in kept() if "/" in path} == {"test_other"}


def test_junits_file_has_a_property_and_attachments(run, pytester):
    for source in (FAILS, FAILS_TWICE):
        run(source, "--junit-xml=junit.xml", "-o", "junit_logging=system-out")
        folder = pytester.path / "kvm-artifacts/test_suite.py/test_it"
        junit = ET.parse(pytester.path / "junit.xml")
        assert {each.get("value") for each in junit.iter("property")} == {str(folder)}
        attached = re.findall(
            r"\[\[ATTACHMENT\|(.*)\]\]", "\n".join(each.text for each in junit.iter("system-out"))
        )
        files = {str(path) for path in folder.rglob("*") if path.is_file() and path.name != MARKER}
        assert set(attached) == files


@pytest.fixture
def frozen(monkeypatch):
    """Note what of guests is to be dumped, and keep something in its place."""
    asked = []

    def keep_dumps(_machine, folder, *, what):
        asked.append(what)
        folder.write_together("frozen", lambda place: (place / "disk0.qcow2").touch())

    monkeypatch.setattr(evidence, "keep_dumps", keep_dumps)
    return asked


def test_a_report_tells_how_a_frozen_guest_goes_on(run, pytester, frozen):
    result = run(FAILS, "--kvm-dump=guest,memory", "--junit-xml=junit.xml", "-o", "junit_logging=system-out")
    assert frozen == [{"guest", "memory"}]
    folder = pytester.path / "kvm-artifacts/test_suite.py/test_it/web"
    result.stdout.fnmatch_lines([f"{folder}: *frozen/*", f"pytest-kvm resume {folder}"])
    junit = (pytester.path / "junit.xml").read_text()
    assert "domain.xml]]" in junit
    assert "disk0" not in junit


def test_the_command_names_what_is_not_usual(run, pytester, frozen):
    options = ["--kvm-dump=guest", f"--kvm-cache-dir={pytester.path}/a cache"]
    result = run(FAILS, *options, f"--kvm-run-dir={pytester.path}/r")
    folder = pytester.path / "kvm-artifacts/test_suite.py/test_it/web"
    flags = f"'--kvm-cache-dir={pytester.path}/a cache' --kvm-run-dir={pytester.path}/r"
    result.stdout.fnmatch_lines([f"pytest-kvm {flags} resume {folder}"])


def test_nothing_is_dumped_unasked(run, frozen):
    run(FAILS).stdout.no_fnmatch_line("*pytest-kvm resume*")
    run(PASSES, "--kvm-dump=guest")
    assert frozen == []


def test_junits_file_has_no_attachments_unasked(run, pytester):
    result = run(FAILS, "--junit-xml=junit.xml")
    assert "ATTACHMENT" not in (pytester.path / "junit.xml").read_text()
    result.stdout.no_fnmatch_line("*ATTACHMENT*")


def test_a_run_without_pytests_junit_plugin(run, kept):
    result = run(FAILS, "-p", "no:junitxml")
    assert "test_suite.py/test_it/web/domain.xml" in kept()
    result.stdout.no_fnmatch_line("*could not find out everything*")


@pytest.fixture
def failed_boot(tmp_path):
    """Return an error of a boot of which something is kept."""
    failure = BootFailed("db: nothing answers")
    failure.kept = tmp_path / "boot"
    failure.kept.mkdir()
    (failure.kept / "console.log").write_text("Linux\n")
    about = {"guest": "db", "spec": "GuestSpec()", "files": ["console.log"], "missing": [], "trouble": ""}
    (failure.kept / "about.json").write_text(json.dumps(about))
    return failure


def test_the_first_test_that_fails_by_a_boot_gets_what_is_kept_of_it(run, kept, failed_boot, pytester):
    source = "def test_it(): raise ValueError\ndef test_other(): raise ValueError"
    result = run(source, machines=(), boot_failures=[failed_boot])
    result.stdout.fnmatch_lines([f"{pytester.path}/kvm-artifacts/test_suite.py/test_it/db: console.log"] * 2)
    assert {path for path in kept() if "/db/" in path} == {"test_suite.py/test_it/db/console.log"}
    assert not failed_boot.kept.exists()
    assert about_of(pytester)["guests"]["db"]["files"] == ["console.log"]
    assert about_of(pytester, "test_suite.py/test_other")["guests"]["db"]["kept_in"] == "../test_it/db"


@pytest.mark.parametrize(
    "how",
    [
        "raise failure",
        "raise ValueError from failure",
        "raise ExceptionGroup('two', [ValueError(), failure])",
        """try:
        raise failure
    except Exception:
        raise ValueError""",
    ],
)
def test_what_is_kept_of_a_boot_is_found_by_the_error(run, kept, failed_boot, how, monkeypatch):
    monkeypatch.setattr(Kernels, "failure", failed_boot, raising=False)
    monkeypatch.setattr(Kernels, "pytest_configure", lambda self, config: setattr(config, "run", self))
    source = f"def test_it(pytestconfig):\n    failure = pytestconfig.run.failure\n    {how}"
    run(source, "--kvm-keep-artifacts=never")
    assert kept() == set()
    run(source)
    assert {"test_suite.py/test_it/db/console.log", "test_suite.py/test_it/web/domain.xml"} <= kept()


def test_both_a_boot_and_a_machine_of_a_guest_are_kept(run, kept, failed_boot):
    (failed_boot.kept / "about.json").write_text('{"guest": "web", "files": [], "missing": []}')
    run(FAILS, boot_failures=[failed_boot])
    place = "test_suite.py/test_it"
    assert {f"{place}/web/console.log", f"{place}/in-call/web/domain.xml"} <= kept()


def test_three_machines_of_one_name_are_kept(run, kept, failed_boot):
    second = BootFailed("db: again")
    second.kept = failed_boot.kept.with_name("second")
    shutil.copytree(failed_boot.kept, second.kept)
    third = BootFailed("db: again")
    third.kept = failed_boot.kept.with_name("third")
    shutil.copytree(failed_boot.kept, third.kept)
    run(FAILS, machines=(), boot_failures=[failed_boot, second, third])
    place = "test_suite.py/test_it"
    files = [f"{place}/{each}/console.log" for each in ("db", "in-call/db", "in-call/db~2")]
    assert {*files} <= kept()


def test_a_boot_is_told_once_of_a_test(run, kept, failed_boot, pytester):
    result = run(FAILS_TWICE, machines=(), boot_failures=[failed_boot])
    assert result.stdout.str().count("/test_it/db: console.log") == 1
    assert about_of(pytester)["guests"].keys() == {"db"}


def test_what_was_kept_of_a_boot_may_have_been_rotated_out(run, failed_boot):
    (failed_boot.kept / "console.log").write_text("x" * 10_000)
    source = "def test_it(): raise ValueError\ndef test_other(): raise ValueError"
    result = run(source, "--kvm-artifacts-size=5KiB", machines=(), boot_failures=[failed_boot])
    result.stdout.fnmatch_lines(["*/test_it/db was removed, as all take up more than --kvm-artifacts-size"])


def test_odd_facts_of_a_boot_keep_no_machine_from_being_kept(run, kept, failed_boot):
    (failed_boot.kept / "about.json").write_text("{}")
    result = run(FAILS, boot_failures=[failed_boot])
    result.stdout.fnmatch_lines(["*could not find out everything*"])
    assert "test_suite.py/test_it/web/domain.xml" in kept()


def test_a_transcript_that_fails_keeps_nothing_else_from_being_kept(run, kept, monkeypatch, pytester):
    def text(self, *, since):
        raise ZeroDivisionError("by us")

    monkeypatch.setattr(Transcript, "text", text)
    run(FAILS)
    assert "test_suite.py/test_it/web/domain.xml" in kept()
    missing = (pytester.path / "kvm-artifacts/test_suite.py/test_it/web/missing.txt").read_text()
    assert "transcript.txt: ZeroDivisionError('by us')" in missing


def test_what_was_kept_of_a_boot_may_be_gone(run, failed_boot):
    (failed_boot.kept / "about.json").unlink()
    result = run(FAILS, machines=(), boot_failures=[failed_boot])
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(
        ["*- artifacts -*", f"not all is kept: what was kept of a boot in {failed_boot.kept} is gone"]
    )


def test_only_the_try_that_failed_has_a_property(run, pytester):
    source = FAILS.replace(
        "def test_it():", "tries = []\n\ndef test_it():\n    tries.append(1)\n    if tries[1:]: return"
    )
    run(source, "--reruns=1", "--junit-xml=junit.xml").stdout.fnmatch_lines(["*1 passed, 1 rerun*"])
    failed, passed = ET.parse(pytester.path / "junit.xml").iter("testcase")
    assert [len(list(each.iter("property"))) for each in (failed, passed)] == [1, 0]


def test_what_is_missing_is_told(run):
    run(FAILS).stdout.fnmatch_lines(
        ["*web: screenshot.png, *missing.txt (not all: qemu.log: only libvirt's daemon knows where it is)"]
    )
