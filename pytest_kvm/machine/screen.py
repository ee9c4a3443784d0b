"""Converts screenshots of a guest to PNG.

libvirt returns what QEMU's ``screendump`` wrote: PPM, or PNG from QEMU 7.1
and libvirt 8.10 on. A test report needs PNG in both cases.
"""

from __future__ import annotations

import re
import struct
import zlib

from pytest_kvm.errors import DomainFailed

_PNG = b"\x89PNG\r\n\x1a\n"
_PPM = re.compile(rb"P6\s+(?:#[^\n]*\n\s*)*(\d{1,5})\s+(\d{1,5})\s+255\s")
_RGB8 = (8, 2, 0, 0, 0)
"""Bit depth, colour type, compression, filter, interlace of the PNG header (ISO 15948, 11.2.2)."""


def to_png(picture: bytes) -> bytes:
    """Return a screenshot as PNG.

    Args:
        picture: PNG, or PPM with one byte per colour (ppm(5)).

    Raises:
        DomainFailed: The picture is neither PNG nor PPM, or is cut short.
    """
    if picture.startswith(_PNG):
        return picture
    header = _PPM.match(picture)
    if header is None:
        raise DomainFailed(f"a screenshot begins with {picture[:16]!r}: neither PNG nor PPM")
    width, height = int(header[1]), int(header[2])
    pixels = memoryview(picture)[header.end() :]
    stride = 3 * width
    if not width or not height or len(pixels) < stride * height:
        raise DomainFailed(f"a screenshot of {width}x{height} has only {len(pixels)} bytes of pixels")
    rows = b"".join(b"\0" + pixels[row * stride : (row + 1) * stride] for row in range(height))
    return b"".join(
        (
            _PNG,
            _chunk(b"IHDR", struct.pack(">II5B", width, height, *_RGB8)),
            _chunk(b"IDAT", zlib.compress(rows)),
            _chunk(b"IEND", b""),
        )
    )


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
