"""Keeps and calls judges: functions of the test that say which frames are dropped."""

from __future__ import annotations

import logging
from collections.abc import Callable

_log = logging.getLogger("pytest_kvm.switch")

Judge = Callable[[bytes], bool]
"""Says whether a frame is dropped."""


class Judges:
    """Judges by the number of their fault; a judge that raises an exception is not asked again."""

    def __init__(self) -> None:
        self._judges: dict[int, Judge] = {}
        self._failures: dict[int, Exception] = {}

    def appoint(self, number: int, judge: Judge) -> None:
        """Let a judge decide about the frames of a fault from now on."""
        self._judges[number] = judge

    def drops(self, number: int, frame: bytes) -> bool:
        """Ask the judge of a fault whether a frame is dropped; without a judge the frame passes."""
        judge = self._judges.get(number)
        if judge is None:
            return False
        try:
            return bool(judge(frame))
        except Exception as failure:  # noqa: BLE001 - dismiss() raises it: the thread that asks has to go on
            _log.warning("the frames of fault %d are judged no more: %r", number, failure)
            self._failures[number] = failure
            self._judges.pop(number, None)
            return False

    def dismiss(self, number: int) -> None:
        """Remove the judge of a fault; a second call does nothing.

        Raises:
            Exception: The exception that the judge raised.
        """
        self._judges.pop(number, None)
        failure = self._failures.pop(number, None)
        if failure is not None:
            raise failure
