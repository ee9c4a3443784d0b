"""Writes captures: https://www.ietf.org/archive/id/draft-ietf-opsawg-pcap-05.html, with nanoseconds."""

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
    """A file that grows by each frame that passes.

    Args:
        path: A new file.

    Raises:
        OSError: It cannot be written.
    """

    def __init__(self, path: Path) -> None:
        self._file = path.open("xb", buffering=1 << 16)
        self._file.write(_FILE.pack(_MAGIC, 2, 4, 0, 0, LONGEST, _ETHERNET))
        self._file.flush()
        self.frames = 0
        self.written = 0
        """Frames that are in the file."""
        self.problem = ""
        """Why nothing more is written, such as a full disk."""

    def take(self, frame: bytes) -> None:
        """Note a frame that passes now."""
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
        """Have all frames in the file."""
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
