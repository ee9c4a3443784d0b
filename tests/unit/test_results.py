"""What a finished command left behind."""

from __future__ import annotations

import pytest

from pytest_kvm.errors import CommandFailed
from pytest_kvm.results import CommandResult, label, tail


def test_text_is_decoded_with_replacement_and_bytes_stay():
    result = CommandResult(argv=("x",), exit_code=0, stdout_bytes=b"a\xff", stderr_bytes=b"\xc3\xa4")
    assert (result.stdout, result.stderr, result.stdout_bytes) == (
        "a\N{REPLACEMENT CHARACTER}",
        "ä",
        b"a\xff",
    )


def test_check_returns_the_result_or_raises_with_it():
    good = CommandResult(argv="true", exit_code=0)
    assert good.check() is good
    bad = CommandResult(argv=("ls", "a b"), exit_code=2, stderr_bytes=b"no\n", duration=1.25, guest="web")
    with pytest.raises(CommandFailed) as caught:
        bad.check()
    assert str(caught.value) == (
        "web: `ls 'a b'`: exit code 2 after 1.2 s\n--- stdout\n(empty)\n--- stderr\nno"
    )
    assert caught.value.result is bad


def test_an_assertion_shows_what_ran_and_how_stderr_ends():
    result = CommandResult(argv=("ls",), exit_code=2, stderr_bytes=b"first\nlast\n", guest="web")
    assert repr(result) == "<CommandResult web: `ls`: exit code 2; stderr ends 'last'>"


def test_messages_show_the_end_of_long_output_and_say_so():
    text, note = tail(b"".join(b"line %d\n" % number for number in range(1000)))
    assert text.splitlines()[-1] == "line 999"
    assert len(text.splitlines()) == 40
    assert note == " (the end of 8890 bytes)"


def test_what_a_guest_prints_does_not_steer_the_terminal():
    assert "\x1b" not in tail(b"\x1b[2J\x07")[0]
    assert "\x1b" not in label("echo \x1b[2J")
    assert "\x1b" not in repr(CommandResult(argv="x", exit_code=1, stderr_bytes=b"\x1b]0;x\x07"))


def test_a_long_command_is_named_on_one_bounded_line():
    name = label("set -e\n" + "echo x\n" * 100)
    assert name.startswith("set -e ⏎ echo x")
    assert len(name) <= 121
