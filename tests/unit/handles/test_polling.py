"""Polling: what is a breach, when it is raised, and what it says."""

from __future__ import annotations

import re
import threading
from typing import Any

import pytest

import pytest_kvm as kvm
from pytest_kvm.errors import SpecError
from pytest_kvm.handles import polling


class Condition:
    """Returns or raises one value after another, and then the last one again and again."""

    def __init__(self, *values):
        self._values = list(values)
        self.looks = 0
        self._is_looked_at = threading.Condition()
        self.__name__ = "condition"

    def __call__(self):
        with self._is_looked_at:
            value = self._values[min(self.looks, len(self._values) - 1)]
            self.looks += 1
            self._is_looked_at.notify_all()
        if isinstance(value, BaseException):
            raise value
        return value

    def wait_for_looks(self, number):
        with self._is_looked_at:
            assert self._is_looked_at.wait_for(lambda: self.looks >= number, timeout=10)


class Unanswerable:
    """Is neither true nor false, and cannot be shown."""

    def __bool__(self):
        raise LookupError("neither true nor false")

    def __repr__(self):
        raise LookupError("nothing to show")


class Unshowable:
    def __bool__(self):
        return False

    def __repr__(self):
        raise LookupError("nothing to show")


def command_result(exit_code):
    return kvm.CommandResult(argv=("true",), exit_code=exit_code)


def poll(condition, *, looks=2, error=None):
    """Poll a condition while it is looked at a number of times; the block raises an error then."""
    with kvm.polling(condition, every=0.001) as watch:
        condition.wait_for_looks(looks)
        if error is not None:
            raise error
    return watch


@pytest.mark.parametrize("value", [True, None, 1, ["a"], command_result(0)])
def test_what_is_true_is_looked_at_again_and_again(value):
    watch = poll(Condition(value), looks=5)
    assert watch.looks >= 5
    assert watch.last == value


def test_a_short_block_is_looked_at_before_and_after():
    with kvm.polling(lambda: True, every=60) as watch:
        assert watch.looks == 1
    assert watch.looks == 2


@pytest.mark.parametrize("value", [False, 0, [], "", None, command_result(1)])
def test_a_breach_is_raised_at_the_end_of_the_block(value):
    condition = Condition("good", "still good", value, "good again")
    with pytest.raises(AssertionError) as caught:
        poll(condition, looks=3)
    assert str(caught.value) == f"condition is false: it returned {value!r}"
    [note] = caught.value.__notes__
    pattern = r"seen by look 3, \d\.\d\d to \d\.\d\d s after polling had begun, at 20.*; the look before saw "
    assert re.fullmatch(pattern + "'still good'", note)
    assert condition.looks == 3


@pytest.mark.parametrize(
    "kind",
    [AssertionError, pytest.fail.Exception, pytest.skip.Exception, SystemExit],
    ids=lambda kind: kind.__name__,
)
@pytest.mark.parametrize("good", [True, None])
def test_what_the_condition_raises_is_a_breach(good, kind):
    with pytest.raises(kind, match="two masters") as caught:
        poll(Condition(good, kind("two masters"), good))
    assert ("; the look before saw True" in caught.value.__notes__[0]) is bool(good)


def test_a_value_that_is_neither_true_nor_false_is_a_breach():
    with pytest.raises(LookupError, match="neither true nor false"):
        poll(Condition(True, Unanswerable()))


def test_a_value_that_cannot_be_shown_is_a_breach():
    with pytest.raises(AssertionError, match="condition is false: it returned <Unshowable instance at"):
        poll(Condition(True, Unshowable()))


def test_the_value_is_shown_as_it_was_then():
    values = ["a"]

    def block():
        with kvm.polling(lambda: values, every=60, name="values"):
            values.clear()

    with pytest.raises(AssertionError, match="values is false") as caught:
        block()
    assert caught.value.__notes__[0].endswith("the look before saw ['a']")


def test_a_long_value_is_cut():
    with pytest.raises(AssertionError) as caught:
        poll(Condition("x" * 10_000, False))
    assert len(caught.value.__notes__[0]) < 700


def test_what_is_false_before_the_block_keeps_it_from_running():
    with pytest.raises(AssertionError, match="condition is false") as caught, kvm.polling(Condition(False)):
        pytest.fail("the block ran")
    assert "seen by look 1, " in caught.value.__notes__[0]


def test_only_the_condition_is_shown():
    def two_masters():
        masters = ["a", "b"]
        assert len(masters) == 1

    with pytest.raises(AssertionError, match="assert 2 == 1") as caught, kvm.polling(two_masters):
        pytest.fail("the block ran")
    assert [entry.name for entry in caught.traceback.filter(caught)] == [
        "test_only_the_condition_is_shown",
        "two_masters",
    ]


@pytest.mark.parametrize("kind", [LookupError, pytest.fail.Exception], ids=["error", "failure"])
@pytest.mark.parametrize("is_breach", [False, True])
def test_the_blocks_own_error_comes_first(kind, is_breach):
    breach = AssertionError("two\nmasters")
    breach.add_note("seen on alice")
    with pytest.raises(kind, match="the block") as caught:
        poll(Condition(True, breach) if is_breach else Condition(True), error=kind("the block"))
    notes = getattr(caught.value, "__notes__", [])
    assert len(notes) == is_breach
    words = "and polling condition failed: AssertionError: two\nmasters\nseen on alice\nseen by look 2, "
    assert all(note.startswith(words) for note in notes)


def test_an_error_that_block_and_condition_share_is_told_once():
    error = LookupError("the guest is lost")
    with pytest.raises(LookupError) as caught:
        poll(Condition(True, error), error=error)
    assert not hasattr(caught.value, "__notes__")


@pytest.mark.parametrize(
    ("error", "notes"),
    [
        (pytest.fail.Exception("time-out"), ["and the last look of polling condition has not ended"]),
        (KeyboardInterrupt(), []),
    ],
)
def test_a_look_that_does_not_end_does_not_hold_up_a_failure(error, notes, monkeypatch):
    monkeypatch.setattr(polling, "_LAST_LOOK", 0.01)
    hangs, may_end, ends = threading.Event(), threading.Event(), threading.Event()

    def condition():
        if threading.current_thread() is not threading.main_thread():
            hangs.set()
            may_end.wait(60)
            ends.set()

    def block():
        with kvm.polling(condition, every=0.001):
            assert hangs.wait(10)
            raise error

    with pytest.raises(type(error)) as caught:
        block()
    assert getattr(caught.value, "__notes__", []) == notes
    may_end.set()
    assert ends.wait(10)


def test_one_is_for_one_block():
    watch = poll(Condition(True))
    with pytest.raises(SpecError, match="polling: it was used before"), watch:
        pytest.fail("the block ran")


async def coroutine():
    """Return nothing; not even that."""


def generator():
    yield True


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"condition": True}, "polling: True is not a function"),
        ({"condition": coroutine}, "returns before it has run"),
        ({"condition": generator}, "returns before it has run"),
        ({"every": -1}, "polling: every: -1 is not a number of seconds from 0 to 86400"),
        ({"every": "1s"}, "polling: every: '1s' is not"),
        ({"every": True}, "polling: every: True is not"),
    ],
)
def test_mistakes(arguments: dict[str, Any], message):
    with pytest.raises(SpecError) as caught:
        kvm.polling(**{"condition": dict, **arguments})
    assert message in str(caught.value)
