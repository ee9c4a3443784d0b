"""Keep libvirt's own messages off the terminal. Loads no libvirt.

The embedded driver runs inside this process and logs warnings and errors to
stderr, where they would end up between the lines of a test report. libvirt
reads where to log from the environment once, while it is loaded
(https://libvirt.org/logging.html).
"""

from __future__ import annotations

import os
import sys
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from pytest_kvm.errors import ConnectionFailed

_VARIABLE = "LIBVIRT_LOG_OUTPUTS"
_WARNINGS_AND_ERRORS = 3
_files: list[Path] = []


@contextmanager
def logging_to(file: Path) -> Generator[None]:
    """Have the libvirt that the block loads log to ``file``.

    Nothing happens if it is loaded already, or if the user chose another
    place. The variable is gone after the block: our children have to choose
    for themselves.

    Raises:
        ConnectionFailed: libvirt could not read the path.
    """
    if "libvirt" in sys.modules or _VARIABLE in os.environ:
        yield
        return
    if any(letter.isspace() for letter in str(file)):
        raise ConnectionFailed(
            f"libvirt cannot log to {str(file)!r}: its list of log files is split at spaces",
            resolution="choose a run folder without spaces",
        )
    file.parent.mkdir(parents=True, exist_ok=True)
    os.environ[_VARIABLE] = f"{_WARNINGS_AND_ERRORS}:file:{file}"
    try:
        yield
        _files.append(file)
    finally:
        del os.environ[_VARIABLE]


def check_log_folder() -> None:
    """Refuse to go on when the log's folder was removed.

    Each child of the embedded driver opens the log again before it becomes
    QEMU, and ends when it cannot.

    Raises:
        ConnectionFailed: It was removed.
    """
    if _files and not _files[0].parent.is_dir():
        raise ConnectionFailed(
            f"libvirt of this process logs to {_files[0]}, and that folder is gone",
            resolution="one process has one run folder: start a new process for another run",
        )
