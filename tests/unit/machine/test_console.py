from __future__ import annotations

import socket
import threading
import tracemalloc

import pytest

from pytest_kvm.errors import GuestGone, WaitTimeout
from pytest_kvm.machine.console import Console, PlainDecoder
from pytest_kvm.plaintext import plain


def test_a_console_that_has_no_log_yet_is_empty(tmp_path):
    console = Console(tmp_path / "absent", None)
    assert (console.offset(), console.text(), console.tail()) == (0, "", "")


def test_the_tail_is_the_last_lines_that_are_not_blank(machine, printed):
    printed("".join(f"line {number}\r\n\r\n" for number in range(100)))
    assert machine.console.tail(3) == "line 97\nline 98\nline 99"


def test_the_text_is_bounded(machine, printed):
    printed(b"x" * 10_000 + b"end")
    assert machine.console.text(limit=5) == "xxend"


def test_wait_sees_what_comes_later_and_not_what_came_before(machine, printed):
    printed("ready\n")
    timer = threading.Timer(0.2, printed, ["not rea"])
    timer.start()
    later = threading.Timer(0.4, printed, ["dy: code 17\n"])
    later.start()
    assert machine.console.wait(r"ready: code (\d+)", timeout=10)[1] == "17"
    timer.join()
    later.join()


def test_wait_from_an_offset_finds_the_past(machine, printed):
    printed("login: ")
    assert machine.console.wait("^login: $", timeout=1, since=0)


def test_wait_that_runs_out_tells_the_last_line(machine, printed):
    printed("before\n")
    timer = threading.Timer(0.05, printed, ["Booting\n"])
    timer.start()
    with pytest.raises(WaitTimeout, match=r"/never/ on the console; last seen: Booting"):
        machine.console.wait("never", timeout=0.5)


def test_wait_ends_when_the_guest_does_but_hears_its_last_words(machine, printed, domain):
    domain.end("QEMU died: killed by signal 9")
    with pytest.raises(GuestGone, match="killed by signal 9"):
        machine.console.wait("never", timeout=60)
    printed("goodbye\n")
    assert machine.console.wait("goodbye", timeout=60, since=0)


def test_a_flood_on_the_console_does_not_fill_memory(machine, printed):
    line = b"y" * 1023 + b"\n"
    for _ in range(32):
        printed(line * 1024)
    printed("the end\n")
    tracemalloc.start()
    assert machine.console.wait("the end", timeout=60, since=0)
    assert machine.console.tail()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 8 * 1024**2


def test_a_log_that_was_rotated_is_read_from_its_start(machine, printed):
    printed("x" * 1000)
    reader = machine.console.follow()
    assert list(reader.windows())
    machine.console.log.write_text("fresh\n")
    assert "fresh" in next(reader.windows())


def test_send_types_everything_and_reads_what_is_echoed(tmp_path):
    path = tmp_path / "s"
    got = bytearray()
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))
        server.listen()

        def qemu():
            line, _ = server.accept()
            with line:
                line.sendall(b"noise" * 100_000)
                while data := line.recv(16):
                    got.extend(data)

        thread = threading.Thread(target=qemu)
        thread.start()
        Console(tmp_path / "log", path).send("echo hello\n" * 100)
        thread.join(10)
    assert got == b"echo hello\n" * 100


def test_send_to_a_guest_that_is_gone_says_so(tmp_path):
    with pytest.raises(GuestGone, match="cannot type on the console"):
        Console(tmp_path / "log", tmp_path / "absent").send("x")


# ---------------------------------------------------------------- without control functions

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
