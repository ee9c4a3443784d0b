"""Keep libvirt's own messages off the terminal. This module does not load libvirt.

The embedded driver runs inside this process and logs warnings and errors to
stderr, where they would end up between the lines of a test report. libvirt
reads from the environment where to log, once, while it is loaded
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
    """Make libvirt log to ``file`` if the block loads libvirt.

    Nothing happens if libvirt is loaded already, or if the user has set
    ``LIBVIRT_LOG_OUTPUTS``. The variable is removed after the block, so that
    child processes do not inherit it.

    Raises:
        ConnectionFailed: The path contains a space, so libvirt cannot read it.
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
    """Raise an error if the folder of libvirt's log was removed.

    Each child process of the embedded driver opens the log again before it
    becomes QEMU, and exits if it cannot.

    Raises:
        ConnectionFailed: The folder was removed.
    """
    if _files and not _files[0].parent.is_dir():
        raise ConnectionFailed(
            f"libvirt of this process logs to {_files[0]}, and that folder is gone",
            resolution="one process has one run folder: start a new process for another run",
        )
