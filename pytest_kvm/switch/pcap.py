"""Writes captured frames into pcap files, with times in nanoseconds.

https://www.ietf.org/archive/id/draft-ietf-opsawg-pcap-05.html
"""

from __future__ import annotations

import struct
import time
from pathlib import Path

from pytest_kvm.switch.frames import LONGEST

_FILE = struct.Struct("<IHHiIII")
_RECORD = struct.Struct("<IIII")
_MAGIC = 0xA1B23C4D
_ETHERNET = 1


class Capture:
    """A pcap file that grows by each captured frame.

    Args:
        path: The file to make.

    Raises:
        OSError: The file cannot be made, or exists already.
    """

    def __init__(self, path: Path) -> None:
        self._file = path.open("xb", buffering=1 << 16)
        self._file.write(_FILE.pack(_MAGIC, 2, 4, 0, 0, LONGEST, _ETHERNET))
        self._file.flush()
        self.frames = 0
        self.written = 0
        """How many frames were flushed to the file."""
        self.problem = ""
        """Why no more frames are written (a full disk, for example); empty while writing works."""

    def take(self, frame: bytes) -> None:
        """Append a frame that passes now."""
        if self.problem:
            return
        seconds, nanoseconds = divmod(time.time_ns(), 1_000_000_000)
        record = _RECORD.pack(seconds, nanoseconds, len(frame), len(frame))
        try:
            self._file.write(record + frame)
        except OSError as failure:
            self.problem = str(failure)
        else:
            self.frames += 1

    def flush(self) -> None:
        """Flush all appended frames to the file."""
        if self.written != self.frames and not self.problem:
            try:
                self._file.flush()
            except OSError as failure:
                self.problem = str(failure)
            else:
                self.written = self.frames

    def close(self) -> None:
        """Finish the file."""
        self.flush()
        try:
            self._file.close()
        except OSError as failure:
            self.problem = self.problem or str(failure)
