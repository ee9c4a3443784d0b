"""The test's own functions that say which frames are dropped."""

from __future__ import annotations

import logging
from collections.abc import Callable

_log = logging.getLogger("pytest_kvm.switch")

Judge = Callable[[bytes], bool]
"""Says whether a frame is dropped."""


class Judges:
    """Judges by the number of their fault; one that raises is asked no more."""

    def __init__(self) -> None:
        self._judges: dict[int, Judge] = {}
        self._failures: dict[int, Exception] = {}

    def appoint(self, number: int, judge: Judge) -> None:
        """Let a judge decide from now on."""
        self._judges[number] = judge

    def drops(self, number: int, frame: bytes) -> bool:
        """Ask whether a frame is dropped; without a judge it passes."""
        judge = self._judges.get(number)
        if judge is None:
            return False
        try:
            return bool(judge(frame))
        except Exception as failure:  # noqa: BLE001 - dismiss() raises it: whoever asks has more to do
            _log.warning("the frames of fault %d are judged no more: %r", number, failure)
            self._failures[number] = failure
            self._judges.pop(number, None)
            return False

    def dismiss(self, number: int) -> None:
        """Let nobody decide any more; a second time does nothing.

        Raises:
            Exception: What the judge has raised.
        """
        self._judges.pop(number, None)
        failure = self._failures.pop(number, None)
        if failure is not None:
            raise failure
