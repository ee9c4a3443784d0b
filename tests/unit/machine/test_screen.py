from __future__ import annotations

import struct
import zlib

import pytest

from pytest_kvm.errors import DomainFailed
from pytest_kvm.machine.screen import to_png

PIXELS = bytes(range(18))


def unpacked(png):
    """Return width, height and raw rows, checking every checksum."""
    assert png[:8] == b"\x89PNG\r\n\x1a\n"
    chunks, at = {}, 8
    while at < len(png):
        (size,) = struct.unpack(">I", png[at : at + 4])
        kind, data = png[at + 4 : at + 8], png[at + 8 : at + 8 + size]
        assert struct.unpack(">I", png[at + 8 + size : at + 12 + size])[0] == zlib.crc32(kind + data)
        chunks[kind] = data
        at += 12 + size
    width, height, *kind = struct.unpack(">II5B", chunks[b"IHDR"])
    assert kind == [8, 2, 0, 0, 0]
    assert b"IEND" in chunks
    return width, height, zlib.decompress(chunks[b"IDAT"])


@pytest.mark.parametrize("header", [b"P6\n3 2\n255\n", b"P6 # by QEMU\n# twice\n 3\t2 255 "])
def test_ppm_becomes_png(header):
    rows = b"\0" + PIXELS[:9] + b"\0" + PIXELS[9:]
    assert unpacked(to_png(header + PIXELS)) == (3, 2, rows)


def test_png_stays_as_it_is():
    png = to_png(b"P6\n3 2\n255\n" + PIXELS)
    assert to_png(png) is png


@pytest.mark.parametrize(
    "picture", [b"", b"GIF89a", b"P6\n3 2\n255\n" + PIXELS[:-1], b"P6\n0 0\n255\n", b"P6\n999999 9\n255\n"]
)
def test_anything_else_is_refused(picture):
    with pytest.raises(DomainFailed, match="screenshot"):
        to_png(picture)
