"""Files of captured frames in the format pcapng, with times in nanoseconds and the name of each link.

https://www.ietf.org/archive/id/draft-ietf-opsawg-pcapng-03.html; Wireshark and
tcpdump read it. A file is a sequence of blocks, and each block begins and ends
with its length. Each link is an *interface* of the file.
"""

from __future__ import annotations

import struct
import time
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

from pytest_kvm.switch.frames import LONGEST
from pytest_kvm.switch.link import Direction

_SECTION, _INTERFACE, _PACKET = 0x0A0D0D0A, 1, 6
_BYTE_ORDER_MAGIC = 0x1A2B3C4D
_ETHERNET = 1
_COMMENT, _IF_NAME, _FLAGS, _IF_TIME_RESOLUTION = 1, 2, 2, 9
_DIRECTIONS: tuple[Direction, Direction] = ("in", "out")
"""In the order of the values of the flags' two lowest bits, from 1."""
_LONGEST_TEXT = 4096
_BLOCK = struct.Struct("<II")
_LENGTH = struct.Struct("<I")
_PACKET_HEADER = struct.Struct("<IIIII")
_OPTION = struct.Struct("<HH")


class Written(NamedTuple):
    """How far a capture has come."""

    frames: int
    """How many frames are in its file, for readers of it."""
    problem: str
    """Why no more frames are written (a full disk, for example); empty while writing works."""


class CaptureFile:
    """A file that grows by each captured frame.

    Args:
        path: The file to make.
        comment: What is captured, in words.
        limit: Bytes that the file may have.

    Raises:
        OSError: The file cannot be made, or exists already.
    """

    def __init__(self, path: Path, *, comment: str, limit: int) -> None:
        self._file = path.open("xb", buffering=1 << 16)
        self._limit = limit
        self._size = 0
        self._interfaces: dict[str, int] = {}
        self._frames = 0
        self.written = Written(frames=0, problem="")
        section = struct.pack("<IHHq", _BYTE_ORDER_MAGIC, 1, 0, -1)
        self._write(_block(_SECTION, section + _options({_COMMENT: _text(comment)})))
        self._file.flush()

    def take(self, frame: bytes, *, link: str, direction: Direction) -> None:
        """Append a frame that passes now.

        Args:
            frame: The frame.
            link: The name of the link that it is captured on.
            direction: Where it goes, seen from the link's guest.
        """
        if self.written.problem:
            return
        new = b"" if link in self._interfaces else _interface_block(link)
        interface = self._interfaces.setdefault(link, len(self._interfaces))
        moment = time.time_ns()
        header = _PACKET_HEADER.pack(interface, moment >> 32, moment & 0xFFFFFFFF, len(frame), len(frame))
        flags = _LENGTH.pack(1 + _DIRECTIONS.index(direction))
        if self._write(new + _block(_PACKET, header + _pad(frame) + _options({_FLAGS: flags}))):
            self._frames += 1

    def flush(self) -> None:
        """Flush all appended frames to the file."""
        if self.written.frames == self._frames:
            return
        try:
            self._file.flush()
        except OSError as failure:
            self._break_off(str(failure))
        else:
            self.written = self.written._replace(frames=self._frames)

    def close(self) -> None:
        """Finish the file."""
        self.flush()
        try:
            self._file.close()
        except OSError as failure:
            self._break_off(str(failure))

    def _break_off(self, problem: str) -> None:
        self.written = self.written._replace(problem=self.written.problem or problem)

    def _write(self, blocks: bytes) -> bool:
        """Append blocks; say whether that was done."""
        if self._size + len(blocks) > self._limit:
            self._break_off(f"the file has reached its limit of {self._limit} bytes")
            return False
        try:
            self._file.write(blocks)
        except OSError as failure:
            self._break_off(str(failure))
            return False
        self._size += len(blocks)
        return True


class CapturedFrame(NamedTuple):
    """A frame as it was captured."""

    frame: bytes
    time: float
    """When it passed, in seconds since the epoch, by the host's clock."""
    link: str
    """Name of the link that it was captured on."""
    direction: Direction
    """Where it went, seen from the link's guest."""


class CaptureReader:
    """Reads a file of :class:`CaptureFile` while the file grows.

    Args:
        file: The file, from its beginning.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._links: list[str] = []

    def __iter__(self) -> Iterator[CapturedFrame]:
        """Yield frames until the file's end; what is written later comes with the next call."""
        while (block := self._next_block()) is not None:
            kind, body = block
            if kind == _INTERFACE:
                self._links.append(_first_option(body[8:]).decode())
            elif kind == _PACKET:
                interface, high, low, length, _ = _PACKET_HEADER.unpack_from(body)
                frame = body[_PACKET_HEADER.size :][:length]
                flags = _first_option(body[_PACKET_HEADER.size + len(_pad(frame)) :])
                yield CapturedFrame(
                    frame,
                    time=((high << 32) + low) / 1e9,
                    link=self._links[interface],
                    direction=_DIRECTIONS[_LENGTH.unpack(flags)[0] - 1],
                )

    def _next_block(self) -> tuple[int, bytes] | None:
        """Return the kind and the content of the next block; None if it is not complete yet."""
        begin = self._file.tell()
        head = self._file.read(_BLOCK.size)
        if len(head) == _BLOCK.size:
            kind, length = _BLOCK.unpack(head)
            rest = self._file.read(length - _BLOCK.size)
            if len(rest) == length - _BLOCK.size:
                return kind, rest[: -_LENGTH.size]
        self._file.seek(begin)
        return None


def _interface_block(link: str) -> bytes:
    header = struct.pack("<HHI", _ETHERNET, 0, LONGEST)
    return _block(_INTERFACE, header + _options({_IF_NAME: _text(link), _IF_TIME_RESOLUTION: b"\x09"}))


def _block(kind: int, body: bytes) -> bytes:
    length = _BLOCK.size + len(body) + _LENGTH.size
    return _BLOCK.pack(kind, length) + body + _LENGTH.pack(length)


def _text(value: str) -> bytes:
    """Return a text as an option's value; one that is longer than options are is cut off."""
    return value.encode(errors="replace")[:_LONGEST_TEXT]


def _pad(data: bytes) -> bytes:
    return data + bytes(-len(data) % 4)


def _options(values: dict[int, bytes]) -> bytes:
    listed = (_OPTION.pack(code, len(value)) + _pad(value) for code, value in values.items())
    return b"".join(listed) + _OPTION.pack(0, 0)


def _first_option(options: bytes) -> bytes:
    _, length = _OPTION.unpack_from(options)
    return options[_OPTION.size :][:length]
