"""Tracebacks without our own frames: our errors explain themselves.

``--full-trace`` shows everything, as it does for pytest's own frames.
"""

from __future__ import annotations

from collections.abc import Iterator
from types import TracebackType
from typing import cast

import pytest

from pytest_kvm.errors import KvmError

_MACHINERY = {"_pytest", "concurrent", "contextlib", "pluggy", "pytest_kvm", "tenacity", "threading"}


def without_machinery(error: KvmError) -> pytest.ExceptionInfo[BaseException]:
    """Return an error with the frames of the user's own code; with its text alone where there are none."""
    shortened: TracebackType | None = None
    for entry in reversed(list(_users_entries(error.__traceback__))):
        shortened = TracebackType(shortened, entry.tb_frame, entry.tb_lasti, entry.tb_lineno)
    if shortened is not None:
        # What it was raised from stands in its text.
        error.__suppress_context__, error.__cause__ = True, None
        told: BaseException = error.with_traceback(shortened)
    else:
        told = cast("BaseException", pytest.fail.Exception(f"{type(error).__name__}: {error}", pytrace=False))
        told.__traceback__ = error.__traceback__
    return pytest.ExceptionInfo[BaseException].from_exception(told)


def _users_entries(traceback: TracebackType | None) -> Iterator[TracebackType]:
    while traceback is not None:
        module = str(traceback.tb_frame.f_globals.get("__name__", ""))
        if module.partition(".")[0] not in _MACHINERY:
            yield traceback
        traceback = traceback.tb_next
