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

        def find(asked, *, can_dump):
            assert asked is machine
            trouble = left.pop(0) if len(left) > 1 else left[0]
            if isinstance(trouble, Exception):
                raise trouble
            return trouble() if callable(trouble) else trouble

        monkeypatch.setattr(vitals, "find_trouble", find)
        pytester.makepyfile(source)
        kernels = Kernels(kvm.GuestSpec(), machines=[machine])
        result = pytester.runpytest_inprocess("-p", "no:cacheprovider", *options, plugins=[kernels])
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
    monkeypatch.setattr(vitals, "find_trouble", lambda asked, can_dump: replace(PAUSED, guest=asked.name))
    for source in (ASSERTION, PLUGINS_OWN):
        pytester.makepyfile(source)
        kernels = Kernels(kvm.GuestSpec(), machines=machines)
        text = f"{pytester.runpytest_inprocess('-p', 'no:cacheprovider', plugins=[kernels]).stdout}"
        for name in ("myweb", "web"):
            assert re.search(rf"(?:^|; ){name} does not answer: it is paused", text, re.MULTILINE), text


def test_one_that_cannot_be_looked_at_hides_no_other(pytester, machine, monkeypatch):
    def find(asked, *, can_dump):
        if asked.name == "broken":
            raise ZeroDivisionError("by us")
        return PAUSED

    monkeypatch.setattr(vitals, "find_trouble", find)
    pytester.makepyfile(ASSERTION)
    kernels = Kernels(kvm.GuestSpec(), machines=[replace(machine, name="broken"), machine])
    result = pytester.runpytest_inprocess("-p", "no:cacheprovider", plugins=[kernels])
    result.stdout.fnmatch_lines(["web does not answer: it is paused", "ZeroDivisionError: by us"])


def test_a_kernel_dumps_its_tasks_once_for_a_test(pytester, machine, monkeypatch):
    asked = []

    def find(_machine, *, can_dump):
        asked.append(can_dump)
        return replace(SILENT, was_dumped=can_dump)

    monkeypatch.setattr(vitals, "find_trouble", find)
    pytester.makepyfile(TWICE)
    kernels = Kernels(kvm.GuestSpec(), machines=[machine])
    pytester.runpytest_inprocess("-p", "no:cacheprovider", plugins=[kernels]).assert_outcomes(
        failed=2, errors=1
    )
    assert asked == [True, False, True]


def test_a_kernel_dumps_its_tasks_anew_if_a_test_is_run_again(pytester, machine, monkeypatch):
    asked = []

    def find(_machine, *, can_dump):
        asked.append(can_dump)
        return replace(SILENT, was_dumped=can_dump)

    monkeypatch.setattr(vitals, "find_trouble", find)
    pytester.makepyfile(ASSERTION)
    kernels = Kernels(kvm.GuestSpec(), machines=[machine])
    pytester.runpytest_inprocess("-p", "no:cacheprovider", "--reruns=1", plugins=[kernels])
    assert asked == [True, True]


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
