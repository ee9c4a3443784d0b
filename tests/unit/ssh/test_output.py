"""Output is kept in full and told within bounds."""

from __future__ import annotations

import logging
import threading

import pytest

from pytest_kvm.ssh.output import START_UP_LIMIT, CommandStart, LineLog, Stream

MARK = b"pytest-kvm-group 1\n"


@pytest.fixture
def log(caplog):
    caplog.set_level(logging.INFO, "pytest_kvm.output")
    return logging.getLogger("pytest_kvm.output")


def stream(log, limit=100, *, begun=True):
    made = Stream(threading.Condition(), LineLog(log, "out: "), limit=limit)
    if begun:
        made.feed(MARK)
    return made


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
    assert (output.value(), output.received, output.overflowed) == (b"abcd", 6 + len(MARK), True)


@pytest.mark.parametrize("before", [b"", b"Welcome\n", b"no line end"])
def test_a_command_begins_behind_the_mark(before):
    start = CommandStart()
    pieces = [before + b"pytest-kvm-", b"group 12", b"3\nreal", b"pytest-kvm-group 9\n"]
    assert b"".join(map(start.feed, pieces)) + start.finish() == b"realpytest-kvm-group 9\n"
    assert start.group == 123
    assert start.happened


@pytest.mark.parametrize("line", [b"pytest-kvm-group x\n", b"pytest-kvm-group 1234567890123\n", b""])
def test_what_a_shell_printed_that_ran_no_command_is_kept(line):
    start = CommandStart()
    assert start.feed(line) + start.finish() == line
    assert start.group is None
    assert not start.happened


def test_a_stream_without_a_mark_is_not_held_back_for_ever():
    start = CommandStart()
    printed = b"x" * (START_UP_LIMIT + 1)
    assert start.feed(printed[:-1]) == b""
    assert start.feed(printed[-1:]) == printed
    assert start.overrun


def test_what_a_shell_prints_that_hangs_is_told(log):
    output = stream(log, limit=4, begun=False)
    output.feed(b"hello")
    assert output.value() == b"hello"
    output.feed(MARK + b"mine")
    assert (output.value(), output.overflowed) == (b"mine", False)
