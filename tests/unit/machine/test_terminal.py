from __future__ import annotations

import pytest

from pytest_kvm.machine.terminal import PlainDecoder
from pytest_kvm.plaintext import plain

SHOWN = [
    ("\x1b[32m[  OK  ]\x1b[0m Started\r\n", "[  OK  ] Started\n"),
    ("\x1bc\x1b[?7l\x1b[2J\x1b[0mSeaBIOS\r\n", "SeaBIOS\n"),
    ("\x1b]3008;start=1;type=boot\x1b\\Welcome\x1b]0;title\x07!", "Welcome!"),
    ("10%\r20%\rdone\r\n", "10%\n20%\ndone\n"),
    ("a\x00b\x08c\x9bd\x7fe\tf", "abcde\tf"),
    ("\u202eevil\u2066", "evil"),
    ("\x1b(Btext\x1b7", "text"),
]


@pytest.mark.parametrize(("raw", "shown"), SHOWN)
def test_only_text_tabs_and_newlines_remain(raw, shown):
    assert plain(raw) == shown


@pytest.mark.parametrize(("raw", "shown"), SHOWN)
def test_a_stream_cut_at_any_byte_reads_the_same(raw, shown):
    data = raw.encode() + b"."
    for cut in range(len(data) + 1):
        decoder = PlainDecoder()
        assert decoder.feed(data[:cut]) + decoder.feed(data[cut:]) == shown + ".", cut


def test_bytes_that_are_not_utf8_are_replaced():
    assert PlainDecoder().feed(b"\xff\xfeok\n") == "\ufffd\ufffdok\n"


def test_an_escape_that_never_ends_is_not_held_for_ever():
    decoder = PlainDecoder()
    shown = "".join(decoder.feed(piece) for piece in [b"\x1b]", *[b"x" * 1000] * 10])
    assert len(shown) >= 5000
