from __future__ import annotations

import struct
import zlib

import pytest

from pytest_kvm.errors import SpecError


def test_the_screen_comes_as_png(guest, tmp_path):
    picture = guest.screenshot(tmp_path / "screen.png")
    assert (tmp_path / "screen.png").read_bytes() == picture
    assert picture[:8] == b"\x89PNG\r\n\x1a\n"
    size, kind, width, height = struct.unpack(">I4sII", picture[8:24])
    assert (kind, width > 300, height > 200) == (b"IHDR", True, True)
    assert zlib.crc32(picture[12 : 16 + size]) == struct.unpack(">I", picture[16 + size : 20 + size])[0]


# struct input_event of linux/input.h; type 1 is EV_KEY, value 1 a press.
LISTEN = """
import pathlib, re, struct
devices = pathlib.Path("/proc/bus/input/devices").read_text()
event = re.search(r"[Kk]eyboard.*?(event\\d+)", devices, re.DOTALL)[1]
with open(f"/dev/input/{event}", "rb", buffering=0) as keys:
    print("listening", flush=True)
    pressed = []
    while len(pressed) < 6:
        *_, kind, code, value = struct.unpack("qqHHi", keys.read(24))
        if (kind, value) == (1, 1):
            pressed.append(code)
print(pressed)
"""


def test_keys_arrive_in_the_guest(guest):
    with guest.start(["python3", "-c", LISTEN]) as listener:
        lines = listener.lines()
        assert next(lines) == "listening"
        guest.type_text("Ab")
        guest.send_keys("ctrl-c", "enter")
        assert next(lines) == "[42, 30, 48, 29, 46, 28]"  # input-event-codes.h


def test_a_key_that_does_not_exist_is_refused(guest):
    with pytest.raises(SpecError, match="hyper"):
        guest.send_keys("hyper")
