"""Along pytest's scopes: who finds what on a guest, whatever the fixtures look like."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given, settings

from pytest_kvm.plugin import session
from tests.fakes_state import FakeGuest
from tests.unit.plugin import worlds
from tests.unit.plugin.worlds import WorldPlugin, suites, written

SUITE = """
import pytest

@pytest.fixture(scope="session")
def web(pytestconfig):
    return pytestconfig.web
"""


@pytest.fixture
def run(pytester):
    """Run a suite with a world of its own and return that."""
    numbers = itertools.count()

    def run(suite):
        folder = pytester.path / f"suite{next(numbers)}"
        folder.mkdir()
        written(suite, folder)
        plugin = WorldPlugin()
        arguments = [f"--rootdir={folder}", "--import-mode=importlib", "-p", "no:cacheprovider", "-q"]
        result = pytester.inline_run(*arguments, str(folder), plugins=[plugin])
        assert result.ret in {pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED}
        return plugin.world

    return run


@settings(max_examples=60, suppress_health_check=list(HealthCheck))
@given(suite=suites())
def test_everybody_finds_the_changes_of_those_who_have_not_ended_and_no_others(run, suite):
    world = run(suite)
    assert world.begun > 0
    assert world.wrong == []


def test_a_fixture_ends_with_one_that_depends_on_an_outdated_one(run):
    """Then the test's own fixture has nothing below it that ends under the test."""
    nothing = {"changes": (), "talks": False}
    first = worlds.Fixture(
        name="f0", scope="session", needs=(), params=0, fails=False, changes=("web",), talks=False
    )
    outdated = worlds.Fixture(name="f1", scope="session", needs=(), params=-1, fails=False, **nothing)
    built_on_it = replace(first, name="f2", needs=("f1",))
    tests = [
        worlds.Test(wants=("f2",), chosen=(), asks=(), **nothing),
        worlds.Test(wants=("f0", "f1"), chosen=(("f1", 7),), asks=(), **nothing),
    ]
    assert run(([first, outdated, built_on_it], [[tests]])).wrong == []


def test_a_fixture_that_ends_with_a_test_is_not_undone_before_its_own_end(run):
    """Not by another fixture's end, which puts a neighbour back."""
    nothing = {"params": 0, "fails": False, "talks": False}
    first = worlds.Fixture(name="f0", scope="session", needs=(), changes=("web",), **nothing)
    second = worlds.Fixture(name="f1", scope="session", needs=("f0",), changes=("database",), **nothing)
    test = worlds.Test(wants=(), chosen=(), asks=(), changes=(), talks=False)
    assert run(([first, second], [[[test, replace(test, asks=("f1",))]]])).wrong == []


# ---------------------------------------------------------------- one by one


class OneGuest:
    """Gives a suite one guest that is always ready."""

    def __init__(self) -> None:
        self.web: FakeGuest

    def pytest_sessionstart(self, session):
        self.web = FakeGuest("web", session_keeper(session.config))
        session.config.web = self.web
        session.config.stash[run_key] = self

    def holds(self, value):
        return value is self.web

    @property
    def faults(self):
        return self

    captures = segments = kernels = faults

    def at_work(self):
        """Return no fault, because the guest is on no segment."""
        return []

    def all(self):
        """Return no segment."""
        return []

    def begin_test(self):
        """The guest has no kernel."""

    def look(self, guests):
        """There is nothing to see."""

    def take(self):
        """Return no report."""
        return []

    def ready_machines(self):
        return []

    def that_are_ready(self, guests):
        """Return no machine."""
        return []

    def that_can_answer(self):
        """Return no machine."""
        return []

    def record(self, segments):
        """Capture nothing."""

    def note_test(self, test):
        """Nobody looks from outside."""

    def reserve(self, specs, *, peak, is_wide):
        """There is room."""

    def end_reservation(self):
        """Nothing is reserved."""

    def close(self):
        """Nothing is open."""


session_keeper, run_key = session.coordinator_of, session._RUN


@pytest.fixture
def suite(pytester):
    """Run tests on a guest and return the result and the guest."""

    def suite(source, *arguments):
        pytester.makepyfile(SUITE + source)
        plugin = OneGuest()
        result = pytester.inline_run(*arguments, plugins=[plugin])
        return result, plugin.web

    return suite


def test_a_fixture_set_up_within_a_test_ends_with_it(suite):
    result, _ = suite(
        """
seen = []

@pytest.fixture(scope="module")
def late(web):
    web.change("late")
    yield
    seen.append(web.look())

def test_a(web, request):
    web.change("a")
    request.getfixturevalue("late")
    web.change("a again")
    assert web.look() == ["a", "late", "a again"]

def test_b(web):
    assert seen == [["a", "late"]]
    assert web.look() == []

def test_c(web, late):
    assert web.look() == ["late"]

def test_d(web, late):
    assert web.look() == ["late"]
"""
    )
    result.assertoutcome(passed=4)


def test_a_wider_fixture_set_up_after_a_narrower_one_ends_with_it(suite):
    result, _ = suite(
        """
seen = []

@pytest.fixture(scope="session")
def wide(web):
    web.change("wide")

@pytest.fixture(scope="class")
def narrow(web):
    web.change("narrow")
    yield
    seen.append(web.look())

class TestOne:
    def test_a(self, web, narrow):
        assert web.look() == ["narrow"]

    def test_b(self, web, narrow, wide):
        assert web.look() == ["narrow", "wide"]

class TestTwo:
    def test_c(self, web, wide):
        assert seen == [["narrow"]]
        assert web.look() == ["wide"]

    def test_d(self, web, wide, narrow):
        assert web.look() == ["wide", "narrow"]

def test_e(web, wide):
    assert web.look() == ["wide"]
"""
    )
    result.assertoutcome(passed=5)


def test_a_fixture_that_fails_half_way_leaves_nothing(suite):
    result, _ = suite(
        """
@pytest.fixture(scope="module")
def broken(web):
    web.change("broken")
    raise RuntimeError

def test_a(broken):
    pass

def test_b(web):
    assert web.look() == []

def test_c(broken):
    pass
"""
    )
    assert [report.outcome for report in result.getreports("pytest_runtest_logreport")].count("failed") == 2
    assert len(result.listoutcomes()[0]) == 1


def test_a_parameter_that_ends_takes_what_lies_on_top_and_no_test_notices(suite):
    result, _ = suite(
        """
@pytest.fixture(scope="module", params=[1, 2])
def number(web, request):
    web.change(f"number {request.param}")
    return request.param

@pytest.fixture(scope="module")
def top(web):
    web.change("top")
    yield ["alive"]

def test_a(web, number, top):
    assert web.look() == [f"number {number}", "top"]

def test_b(web, top, number):
    assert sorted(web.look()) == [f"number {number}", "top"]
"""
    )
    result.assertoutcome(passed=4)


def test_no_test_holds_what_a_change_of_parameters_has_ended(suite):
    result, _ = suite(
        """
@pytest.fixture(scope="session")
def wide(web):
    web.change("wide")
    value = ["alive"]
    yield value
    value.clear()

@pytest.fixture(scope="module")
def narrow(web, request):
    web.change(f"narrow {request.param}")

@pytest.mark.parametrize("narrow", [1], indirect=True)
def test_a(web, narrow):
    assert web.look() == ["narrow 1"]

@pytest.mark.parametrize("narrow", [2], indirect=True)
def test_b(web, wide, narrow):
    assert wide == ["alive"]
    assert web.look() == ["wide", "narrow 2"]
"""
    )
    result.assertoutcome(passed=2)


def test_fixtures_are_set_up_again_for_a_guest_that_a_test_has_switched_off(suite):
    result, _ = suite(
        """
@pytest.fixture(scope="session")
def wide(web):
    web.change("wide")

@pytest.fixture(scope="module")
def narrow(web, wide):
    web.change("narrow")

def test_a(web, narrow):
    web.change("off")
    web.state.is_lost = True

def test_b(web, narrow):
    web.state.is_lost = False
    assert web.look() == ["wide", "narrow"]

def test_c(web, narrow):
    assert web.look() == ["wide", "narrow"]
"""
    )
    result.assertoutcome(passed=3)


def test_what_the_plugin_does_for_a_test_is_set_up(suite):
    """Its time counts there, and what fails is an error."""
    result, _ = suite(
        """
@pytest.fixture(scope="module")
def wide(web):
    web.change("wide")

def test_a(web, wide):
    web.change("a")

def test_b(web):
    pass
"""
    )
    result.assertoutcome(passed=2)
    events = {
        (report.nodeid.partition("::")[2], report.when): [each["kind"] for each in report.kvm_events]
        for report in result.getreports("pytest_runtest_logreport")
        if hasattr(report, "kvm_events")
    }
    assert events == {("test_a", "setup"): ["savepoint"], ("test_b", "setup"): ["reset"]}


def test_a_savepoint_that_is_refused_is_an_error_of_set_up(suite):
    result, _ = suite(
        """
@pytest.fixture(scope="module")
def server(web):
    web.change("server")
    web.state.refuses = "a server runs"

def test_a(web, server):
    pass

@pytest.mark.kvm(reset="never")
def test_b(web, server):
    assert web.look() == ["server"]
"""
    )
    reports = result.getreports("pytest_runtest_logreport")
    (failed,) = [report for report in reports if report.failed]
    assert (failed.when, failed.nodeid.partition("::")[2]) == ("setup", "test_a")
    assert "no savepoint between what fixture server did and test_a: a server runs" in failed.longreprtext


def test_marked_tests_continue_each_others_work(suite):
    result, _ = suite(
        """
@pytest.mark.kvm(reset="never")
class TestSteps:
    def test_first(self, web):
        web.change("first")

    def test_second(self, web):
        assert web.look() == ["first"]

def test_mark_always(web):
    assert web.look() == ["first"]

def test_after(web):
    assert web.look() == ["first"]
"""
    )
    result.assertoutcome(passed=4)


def test_a_guest_stays_as_a_failed_test_left_it(suite):
    result, web = suite(
        """
def test_a(web):
    web.change("a")
    assert False

def test_b(web):
    web.change("b")
""",
        "-x",
    )
    result.assertoutcome(failed=1)
    assert web.state.content == ["a"]


DEBUGGER = """
class Debugger:
    quitting = False
    seen = []

    def reset(self):
        pass

    def interaction(self, frame, error):
        innermost = getattr(error, "__traceback__", error)  # which of them depends on Python
        while innermost.tb_next:
            innermost = innermost.tb_next
        self.seen.append(list(innermost.tb_frame.f_locals["web"].state.content))
"""


def test_the_debugger_shows_the_guest_as_the_test_left_it(suite, pytester, monkeypatch):
    pytester.makepyfile(kvm_debugger=DEBUGGER)
    monkeypatch.syspath_prepend(pytester.path)
    result, _ = suite(
        """
from kvm_debugger import Debugger

@pytest.fixture(autouse=True)
def mine(web):
    yield
    web.change("mine")

def test_a(web):
    web.change("a")
    assert False

def test_b(web):
    assert Debugger.seen == [["a"]]
    assert web.look() == []
""",
        "--pdb",
        "--pdbcls=kvm_debugger:Debugger",
    )
    result.assertoutcome(passed=1, failed=1)
