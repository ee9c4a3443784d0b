"""Asks the test's own functions which frames are dropped."""

from __future__ import annotations

import logging
import threading
from base64 import b64decode
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any, Protocol

_log = logging.getLogger("pytest_kvm.switch")

Judge = Callable[[bytes], bool]
"""Says whether a frame is dropped."""


class VerdictCallback(Protocol):
    """Tells the switch what a judge has said."""

    def __call__(self, question: int, *, drop: bool) -> None:
        """Have the frame of a question dropped, or passed on."""
        ...


class Judges:
    """Judges by the numbers of their faults; a judge that raises an exception is not asked again.

    They are asked in a thread of their own, so that one which takes long holds up no order to the switch.

    Args:
        tell: Tells the switch an answer.
    """

    def __init__(self, tell: VerdictCallback) -> None:
        self._tell = tell
        self._judges: dict[int, Judge] = {}
        self._failures: dict[Judge, Exception] = {}
        self._questions: SimpleQueue[dict[str, Any] | None] = SimpleQueue()
        self._thread: threading.Thread | None = None

    def appoint(self, number: int, judge: Judge) -> None:
        """Let a judge decide about the frames of a fault from now on."""
        self._judges[number] = judge
        if self._thread is None:
            # A judge may never return, and nobody waits for it at the end of the run.
            self._thread = threading.Thread(target=self._work, name="kvm-judges", daemon=True)
            self._thread.start()

    def ask(self, question: dict[str, Any]) -> None:
        """Have a question of the switch answered."""
        self._questions.put(question)

    def close(self) -> None:
        """Let the thread end when it has answered."""
        self._questions.put(None)

    def _work(self) -> None:
        while (question := self._questions.get()) is not None:
            drop = self._drops(question["fault"], b64decode(question["frame"]))
            self._tell(question["question"], drop=drop)

    def _drops(self, number: int, frame: bytes) -> bool:
        """Ask the judge of a fault whether a frame is dropped; without a judge the frame passes."""
        judge = self._judges.get(number)
        if judge is None or judge in self._failures:
            return False
        try:
            return bool(judge(frame))
        except Exception as failure:  # noqa: BLE001 - dismiss() raises it: the thread that asks has to go on
            _log.warning("a drop's function is called no more, for it has raised %r", failure)
            self._failures[judge] = failure
            return False

    def dismiss(self, number: int) -> None:
        """Remove the judge of a fault; a second call does nothing.

        Raises:
            Exception: The exception that the judge raised, if this was the last of its faults.
        """
        judge = self._judges.pop(number, None)
        if judge is not None and judge not in self._judges.values():
            failure = self._failures.pop(judge, None)
            if failure is not None:
                raise failure
