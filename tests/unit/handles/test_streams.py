"""Output is kept in full and told within bounds."""

from __future__ import annotations

import logging
import threading

import pytest

from pytest_kvm.handles.streams import GroupFinder, LineLog, Stream


@pytest.fixture
def log(caplog):
    caplog.set_level(logging.INFO, "pytest_kvm.web")
    return logging.getLogger("pytest_kvm.web")


def stream(log, limit=100):
    return Stream(threading.Condition(), LineLog(log, "out: "), limit=limit)


def test_lines_are_told_whole_however_they_come(log, caplog):
    lines = LineLog(log, "out: ")
    for piece in (b"one\ntw", b"o", b"\nthr", b"ee"):
        lines.feed(piece)
    assert caplog.messages == ["out: one", "out: two"]
    lines.finish()
    assert caplog.messages[-1] == "out: three"


def test_a_long_line_is_cut_and_costs_no_memory(log, caplog):
    lines = LineLog(log, "")
    for _ in range(100):
        lines.feed(b"x" * 10_000)
    lines.feed(b"\n")
    assert caplog.messages == ["x" * 500 + "…"]


def test_more_lines_than_a_person_reads_are_counted(log, caplog):
    lines = LineLog(log, "")
    lines.feed(b"x\n" * 10_000)
    lines.finish()
    assert len(caplog.messages) < 500
    assert "lines are not logged" in caplog.messages[-1]


def test_control_characters_do_not_reach_the_log(log, caplog):
    LineLog(log, "").feed(b"\x1b[2Jred\r\n")
    assert caplog.messages == ["red"]


def test_a_line_is_given_once_it_is_complete(log):
    output = stream(log)
    output.feed(b"one\ntw")
    assert output.line_at(0) == b"one\n"
    assert output.line_at(4) is None
    output.finish()
    assert (output.line_at(4), output.line_at(6)) == (b"tw", b"")


def test_what_is_more_than_the_limit_is_counted_not_kept(log):
    output = stream(log, limit=4)
    output.feed(b"abc")
    assert not output.overflowed
    output.feed(b"def")
    assert (output.value(), output.received, output.overflowed) == (b"abcd", 6, True)


def test_the_group_is_taken_out_wherever_it_comes():
    finder = GroupFinder()
    pieces = [b"Welcome\npytest-kvm-", b"group 12", b"3\nreal", b"pytest-kvm-group 9\n"]
    assert b"".join(map(finder.feed, pieces)) + finder.finish() == b"Welcome\nrealpytest-kvm-group 9\n"
    assert finder.group == 123


@pytest.mark.parametrize("line", [b"pytest-kvm-group x\n", b"pytest-kvm-group 1234567890123\n", b""])
def test_what_is_no_group_is_left_as_it_is(line):
    finder = GroupFinder()
    assert finder.feed(line) + finder.finish() == line
    assert finder.group is None


def test_a_stream_without_a_group_is_not_held_back_for_ever():
    finder = GroupFinder()
    assert finder.feed(b"x" * 100_000) == b"x" * 100_000
