"""A digest of what a file holds, whatever its holes.

A RAM file is mostly holes, and a copy of it (a CI cache's archive, ``cp``)
may turn zeros into holes or holes into zeros. So blocks of zeros are left
out of the digest, and holes need not even be read.
"""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

_BLOCK = 64 * 1024
_ZEROS = bytes(_BLOCK)


def digest_of(path: Path) -> str:
    """Return a digest, in hexadecimal, that is the same for the same bytes.

    SHA-256 of the file's size, then of each block of 64 KiB that is not all
    zeros behind its number.
    """
    digest = hashlib.sha256()
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        size = os.fstat(descriptor).st_size
        digest.update(size.to_bytes(8, "big"))
        for number in _blocks_with_data(descriptor, size):
            block = os.pread(descriptor, _BLOCK, number * _BLOCK)
            if block != _ZEROS[: len(block)]:
                digest.update(number.to_bytes(8, "big"))
                digest.update(block)
    finally:
        os.close(descriptor)
    return digest.hexdigest()


def _blocks_with_data(descriptor: int, size: int) -> Iterator[int]:
    """Yield the numbers of the blocks that are not wholly in a hole (``lseek(2)``, ``SEEK_DATA``)."""
    block = 0
    while block * _BLOCK < size:
        try:
            start = os.lseek(descriptor, block * _BLOCK, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:  # nothing but a hole up to the end
                return
            raise
        end = os.lseek(descriptor, start, os.SEEK_HOLE)
        first = max(block, start // _BLOCK)
        block = -(-end // _BLOCK)
        yield from range(first, block)
