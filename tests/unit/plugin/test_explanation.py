"""What the report of a failure says of guests that do not answer."""

from __future__ import annotations

import re
import threading
from dataclasses import replace

import pytest

import pytest_kvm as kvm
from pytest_kvm.machine import vitals
from pytest_kvm.machine.vitals import Trouble
from tests.unit.plugin.kernels import Kernels

OPTIONS = ["-p", "no:cacheprovider", "--kvm-keep-artifacts=never"]
ASSERTION = """
def test_it():
    assert "mine" == "other"
"""
PLUGINS_OWN = """
import pytest_kvm as kvm

def test_it():
    raise kvm.WaitTimeout("timed out", details="own")
"""
FIXTURE = """
import pytest
import pytest_kvm as kvm

@pytest.fixture(scope="module")
def fails():
    raise kvm.WaitTimeout("timed out")

def test_one(fails): pass
def test_two(fails): pass
def test_three(fails): pass
"""
SKIP = """
import pytest

def test_it():
    pytest.skip("no reason")
"""
XFAIL = SKIP.replace("skip", "xfail")
TWICE = """
import pytest

@pytest.fixture
def fails_late():
    yield
    assert "mine" == "other"

def test_one(fails_late):
    assert "mine" == "other"

def test_two():
    assert "mine" == "other"
"""
PAUSED = Trouble(guest="web", what="does not answer: it is paused")
SILENT = Trouble(guest="web", what="does not answer: its kernel is silent", details="RIP=1")
BLOCKED = Trouble(
    guest="web", what="has tasks that are blocked in its kernel: dd (1)", details="stack", sshd_answers=True
)
ENDED = Trouble(guest="web", what="has ended: QEMU died", has_ended=True)


@pytest.fixture
def shown(pytester, machine, monkeypatch):
    """Run a suite whose guest has troubles, one at each look, and return what is shown."""

    def shown(source, *troubles, options=()):
        left = list(troubles)

        def find(asked, *, can_dump, before_dump):
            assert asked is machine
            trouble = left.pop(0) if len(left) > 1 else left[0]
            if isinstance(trouble, Exception):
                raise trouble
            return trouble() if callable(trouble) else trouble

        monkeypatch.setattr(vitals, "find_trouble", find)
        pytester.makepyfile(source)
        kernels = Kernels(kvm.GuestSpec(), machines=[machine])
        result = pytester.runpytest_inprocess(*OPTIONS, *options, plugins=[kernels])
        return result.stdout

    return shown


def test_the_plugins_own_error_says_it(shown):
    text = shown(PLUGINS_OWN, PAUSED)
    text.fnmatch_lines(["*WaitTimeout: timed out; web does not answer: it is paused", "*own"])
    text.no_fnmatch_line("* web *--*")


def test_what_is_known_of_a_silent_guest_follows_the_error(shown):
    text = shown(PLUGINS_OWN, SILENT)
    text.fnmatch_lines(["*timed out; web does not answer: its kernel is silent", "*- web -*", "RIP=1"])


def test_another_failure_is_followed_by_it(shown):
    text = shown(ASSERTION, PAUSED)
    text.fnmatch_lines(["*AssertionError*", "*- web -*", "web does not answer: it is paused"])


def test_the_end_of_a_guest_is_not_taken_for_the_cause(shown):
    text = shown(PLUGINS_OWN, ENDED)
    text.fnmatch_lines(["*WaitTimeout: timed out", "*- web -*", "web has ended: QEMU died"])


def test_an_error_that_several_tests_share_says_what_was_found_last(shown):
    text = f"{shown(FIXTURE, PAUSED, None, SILENT)}"
    assert "timed out; web does not answer: it is paused\n" in text
    assert "timed out; web does not answer: its kernel is silent\n" in text
    assert "timed out\n" in text
    assert "it is paused; web" not in text


def test_tasks_that_are_blocked_explain_what_takes_too_long(shown):
    text = f"{shown(PLUGINS_OWN, BLOCKED)}"
    assert "timed out; web has tasks that are blocked in its kernel: dd (1)\n" in text
    text = f"{shown(PLUGINS_OWN.replace('WaitTimeout', 'GuestGone'), BLOCKED)}"
    assert "blocked in its kernel: dd (1)\nstack" in text
    assert "; web has" not in text


def test_each_of_several_guests_is_named(pytester, machine, monkeypatch):
    machines = [replace(machine, name=name) for name in ("myweb", "web")]
    monkeypatch.setattr(vitals, "find_trouble", lambda asked, **_options: replace(PAUSED, guest=asked.name))
    for source in (ASSERTION, PLUGINS_OWN):
        pytester.makepyfile(source)
        kernels = Kernels(kvm.GuestSpec(), machines=machines)
        text = f"{pytester.runpytest_inprocess(*OPTIONS, plugins=[kernels]).stdout}"
        for name in ("myweb", "web"):
            assert re.search(rf"(?:^|; ){name} does not answer: it is paused", text, re.MULTILINE), text


def test_one_that_cannot_be_looked_at_hides_no_other(pytester, machine, monkeypatch):
    def find(asked, **_options):
        if asked.name == "broken":
            raise ZeroDivisionError("by us")
        return PAUSED

    monkeypatch.setattr(vitals, "find_trouble", find)
    pytester.makepyfile(ASSERTION)
    kernels = Kernels(kvm.GuestSpec(), machines=[replace(machine, name="broken"), machine])
    result = pytester.runpytest_inprocess(*OPTIONS, plugins=[kernels])
    result.stdout.fnmatch_lines(["web does not answer: it is paused", "ZeroDivisionError: by us"])


@pytest.fixture
def asked(pytester, machine, monkeypatch):
    """Run a suite whose guest is silent; return for each look whether its kernel may dump its tasks."""

    def asked(source, *options):
        found = []

        def find(_machine, *, can_dump, before_dump):
            found.append(can_dump)
            return replace(SILENT, was_dumped=can_dump)

        monkeypatch.setattr(vitals, "find_trouble", find)
        pytester.makepyfile(source)
        kernels = Kernels(kvm.GuestSpec(), machines=[machine])
        pytester.runpytest_inprocess(*OPTIONS, *options, plugins=[kernels])
        return found

    return asked


def test_a_kernel_dumps_its_tasks_once_for_a_test(asked):
    assert asked(TWICE) == [True, False, True]


def test_a_kernel_dumps_its_tasks_anew_if_a_test_is_run_again(asked):
    assert asked(ASSERTION, "--reruns=1") == [True, True]


@pytest.mark.parametrize(
    "source", [SKIP, XFAIL, "def test_it(): pass", f"import pytest\n@pytest.mark.xfail{ASSERTION}"]
)
def test_nobody_is_asked_without_a_failure(shown, source):
    text = shown(source, AssertionError("nobody asks"))
    text.no_fnmatch_line("*nobody asks*")


def test_a_failure_stays_if_its_explanation_fails(shown):
    text = shown(ASSERTION, ZeroDivisionError("by us"))
    text.fnmatch_lines(
        ["*AssertionError*", "*- pytest-kvm could not find out everything -*", "ZeroDivisionError: by us"]
    )
    text.fnmatch_lines(["*1 failed*"])


def test_a_failure_stays_if_kernels_cannot_be_looked_at(shown, monkeypatch):
    def look(self, guests):
        raise ZeroDivisionError("by us")

    monkeypatch.setattr(Kernels, "look", look)
    text = shown(ASSERTION, None)
    text.fnmatch_lines(["*AssertionError*", "ZeroDivisionError: by us"])


def test_a_failure_that_should_have_been_another_is_explained(shown):
    marked = f"import pytest\n@pytest.mark.xfail(raises=OSError){ASSERTION}"
    shown(marked, PAUSED).fnmatch_lines(["*AssertionError*", "web does not answer: it is paused"])


def test_the_timer_of_pytest_timeout_does_not_end_the_look(shown):
    def late():
        threading.Event().wait(1.5)
        return PAUSED

    options = ["--timeout=1", "--timeout-method=signal"]
    text = shown(ASSERTION, late, options=options)
    text.fnmatch_lines(["*AssertionError*", "web does not answer: it is paused"])
    text.no_fnmatch_line("*pytest-timeout*")


SLOW_TEARDOWN = """
import threading

import pytest

@pytest.fixture
def slow():
    yield
    threading.Event().wait(30)

@pytest.fixture
def fails_late(slow):
    yield
    assert "mine" == "other"

@pytest.mark.timeout(2, method="signal")
def test_it(fails_late):
    pass
"""


def test_the_timer_of_pytest_timeout_goes_on_after_a_look_in_a_teardown(shown):
    text = shown(SLOW_TEARDOWN, PAUSED)
    text.fnmatch_lines(["*AssertionError: assert 'mine' == 'other'*"])
    text.fnmatch_lines(["*Timeout (>2.0s) from pytest-timeout*"])
    passes = SLOW_TEARDOWN.replace("""assert "mine" == "other\"""", "pass")
    text = shown(passes, None, options=["--kvm-keep-artifacts=always"])
    text.fnmatch_lines(["*Timeout (>2.0s) from pytest-timeout*"])


FAILS_IN_TEARDOWN = """
import pytest

@pytest.fixture
def outer(request):
    yield
    request.config.told.append("torn down")

@pytest.fixture
def fails_late(outer):
    yield
    assert "mine" == "other"

@pytest.mark.MARKER
def test_it(fails_late):
    pass
"""


@pytest.mark.parametrize(
    ("marker", "is_looked_at"),
    [
        ("xfail", False),
        ("xfail(True, reason='x')", False),
        ("xfail('True', reason='x')", False),
        ("xfail(False, reason='x')", True),
        ("xfail(condition=False, reason='x')", True),
        ("xfail(raises=AssertionError)", False),
        ("xfail(raises=OSError)", True),
        ("xfail(raises=(OSError, AssertionError))", False),
    ],
)
def test_a_failing_teardown_is_looked_at_early_unless_it_is_expected(
    pytester, machine, monkeypatch, marker, is_looked_at
):
    told = []
    monkeypatch.setattr(vitals, "find_trouble", lambda *_, **_options: told.append("asked"))
    monkeypatch.setattr(Kernels, "pytest_configure", lambda self, config: setattr(config, "told", told))
    pytester.makepyfile(FAILS_IN_TEARDOWN.replace("MARKER", marker))
    kernels = Kernels(kvm.GuestSpec(), machines=[machine])
    pytester.runpytest_inprocess(*OPTIONS, plugins=[kernels])
    assert told == ["asked"] * is_looked_at + ["torn down"]


GUEST_OF_A_FIXTURE = """
import pytest

class Guest:
    name = "web"

    def wait_ready(self): pass

    def console_tail(self, lines): return ""

@pytest.fixture(scope="module")
def web(request):
    request.config.web = Guest()
    return request.config.web

@pytest.fixture(scope="module")
def app(web): pass

@pytest.fixture(scope="module")
def fails(app):
    {}

def test_it(fails): pass

def test_other(): pass
"""


@pytest.mark.parametrize("body", ["yield; raise LookupError", "raise LookupError"])
def test_guests_that_only_the_fixture_has_are_looked_at(pytester, machine, monkeypatch, body):
    seen = []

    def that_are_ready(self, guests):
        seen.append([type(each).__name__ for each in guests])
        return []

    monkeypatch.setattr(Kernels, "that_are_ready", that_are_ready)
    monkeypatch.setattr(Kernels, "holds", lambda self, value: type(value).__name__ == "Guest")
    pytester.makepyfile(GUEST_OF_A_FIXTURE.format(body))
    pytester.runpytest_inprocess(*OPTIONS, plugins=[Kernels(kvm.GuestSpec(), machines=[machine])])
    assert seen[0] == ["Guest"]


def test_an_unexpected_success_that_fails_is_looked_at(shown):
    source = "import pytest\n@pytest.mark.xfail(strict=True)\ndef test_it(): pass"
    shown(source, PAUSED).fnmatch_lines(["web does not answer: it is paused"])


def test_nobody_is_asked_for_an_end_of_the_session(shown):
    source = SLOW_TEARDOWN.replace("""assert "mine" == "other\"""", "pytest.exit('enough')")
    text = shown(source.replace("wait(30)", "is_set()"), AssertionError("nobody asks"))
    text.no_fnmatch_line("*nobody asks*")


def test_a_skip_in_a_teardown_hides_no_failure(shown):
    source = SLOW_TEARDOWN.replace("""assert "mine" == "other\"""", "pytest.skip()")
    text = shown(source.replace("threading.Event().wait(30)", "raise LookupError"), PAUSED)
    text.fnmatch_lines(["web does not answer: it is paused"])
