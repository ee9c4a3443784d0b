"""QEMU's capabilities, kept between processes.

libvirt starts QEMU two times to learn what a binary can do, which takes
seconds, and writes the answer below its cache folder. Every embed root has a
cache folder of its own and libvirt rewrites the file in place, so instead of
one shared folder each root gets a copy, and new answers are published back by
rename. libvirt itself checks that an answer still fits: change times of QEMU
and libvirt, host CPU, microcode and kernel (``virQEMUCapsIsValid``).
"""

from __future__ import annotations

import filecmp
import os
import shutil
import threading
from collections.abc import Generator, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path

from pytest_kvm.host.locks import exclusive

_BELOW_ROOT = Path("cache/qemu/capabilities")
_LONGEST_PROBE = 180.0


class CapabilityStore:
    """The answers that all runs of a user share.

    Args:
        folder: Where they are kept.
        root: The embed root that uses them.
    """

    def __init__(self, *, folder: Path, root: Path) -> None:
        self._kept = folder
        self._used = root / _BELOW_ROOT
        self._lock = threading.Lock()
        self._done = False

    @contextmanager
    def shared(self) -> Generator[None]:
        """Give the root what is known, and keep what libvirt learns in the block.

        The block has libvirt ask QEMU. One thread at a time gets in, and while
        nothing is known yet, one process.
        """
        with self._lock:
            if self._done:
                yield
                return
            with self._alone_if_empty():
                self._load()
                yield
                self._publish()
            self._done = True

    def _alone_if_empty(self) -> AbstractContextManager[None]:
        if any(_answers(self._kept)):
            return nullcontext()
        doing = "asking QEMU for its capabilities"
        return exclusive(self._kept / "probe.lock", describe=doing, timeout=_LONGEST_PROBE)

    def _load(self) -> None:
        self._used.mkdir(parents=True, exist_ok=True)
        for answer in _answers(self._kept):
            shutil.copyfile(answer, self._used / answer.name)

    def _publish(self) -> None:
        self._kept.mkdir(parents=True, exist_ok=True)
        for answer in _answers(self._used):
            kept = self._kept / answer.name
            if not kept.exists() or not filecmp.cmp(answer, kept, shallow=False):
                fresh = kept.with_name(f"{kept.name}.{os.getpid()}")
                shutil.copyfile(answer, fresh)
                fresh.replace(kept)


def _answers(folder: Path) -> Iterator[Path]:
    return folder.glob("*.xml")
