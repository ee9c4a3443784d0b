"""``polling``: makes sure that something stays true while a test does something else."""

from __future__ import annotations

import reprlib
import threading
import time
import traceback
from collections.abc import Callable
from datetime import UTC, datetime
from inspect import isasyncgenfunction, iscoroutinefunction, isgeneratorfunction
from types import TracebackType
from typing import Self

from pytest_kvm.errors import SpecError
from pytest_kvm.results import CommandResult
from pytest_kvm.spec.value import check_seconds

_EVERY = 0.5
_LAST_LOOK = 10.0
"""Seconds that a look under way is waited for when the block has failed."""
_VALUES = reprlib.Repr()
_VALUES.maxstring = _VALUES.maxother = _VALUES.maxlong = 500
_VALUES.maxlist = _VALUES.maxtuple = _VALUES.maxset = _VALUES.maxfrozenset = _VALUES.maxdict = 50
"""How values are shown: a guest may have made them, so they can be long."""


class polling:  # noqa: N801 - reads like a statement: with kvm.polling(...)
    """Fail the test if a condition is found false at any time during a block.

    The condition is looked at before the block begins, then again and again in a
    thread, and once more when the block has ended. The first look that finds it
    false is the last one: the end of the block raises what was wrong, with the
    moment and what the look before had seen. If the block fails by itself, its
    error gets that as a note.

    The condition may use guests, also those that the block uses.

    Args:
        condition: Returns something true if all is well, or asserts by itself and returns nothing.
            The result of a command is true if the command exited with 0.
        every: Seconds from the end of one look to the next.
        name: What a failure calls the condition; None: the function's name.

    Raises:
        SpecError: The condition is not a function that can be called as it is, or ``every`` no number of
            seconds; when the block begins: it was used before.
        Exception: When the block begins: the condition is false already. The block is not run.
    """

    def __init__(
        self, condition: Callable[[], object], *, every: float = _EVERY, name: str | None = None
    ) -> None:
        self.looks = 0
        """How often the condition was looked at."""
        self.last: object = None
        """What the condition returned last."""
        self._condition = _check_condition(condition)
        self._every = check_seconds(every, field="polling: every")
        self._name = name or getattr(condition, "__name__", repr(condition))
        self._begun = 0.0
        self._is_over = threading.Event()
        self._shown = ""
        self._breach: BaseException | None = None
        self._moment = ""
        self._thread = threading.Thread(target=self._watch, name=f"kvm-polling-{self._name}", daemon=True)

    def __enter__(self) -> Self:
        __tracebackhide__ = True
        if self.looks:
            raise SpecError("polling: it was used before", resolution="make a new one for each block")
        self._begun = time.monotonic()
        self._look()
        self._raise_breach()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Look once more, and raise what was wrong with the condition.

        If the block failed, no further look begins, and one that is under way has
        10 seconds to end.

        Raises:
            AssertionError: The condition was false.
            BaseException: The condition raised it.
        """
        __tracebackhide__ = True
        self._is_over.set()
        if error is None:
            self._thread.join()
            if self._breach is None:
                self._look()
            self._raise_breach()
        elif not isinstance(error, (KeyboardInterrupt, SystemExit)):
            self._thread.join(timeout=_LAST_LOOK)
            if self._thread.is_alive():
                error.add_note(f"and the last look of polling {self._name} has not ended")
            if self._breach is not None and self._breach is not error:
                told = "".join(traceback.format_exception_only(self._breach))
                error.add_note(f"and polling {self._name} failed: {told}{self._moment}")

    def _raise_breach(self) -> None:
        __tracebackhide__ = True
        if self._breach is not None:
            self._breach.add_note(self._moment)
            raise self._breach

    def _watch(self) -> None:
        __tracebackhide__ = True
        while self._breach is None and not self._is_over.wait(self._every):
            self._look()

    def _look(self) -> None:
        __tracebackhide__ = True
        begun = time.monotonic() - self._begun
        before = self._shown
        self.looks += 1
        breach = self._find_breach()
        if breach is None:
            return
        ended = time.monotonic() - self._begun
        now = datetime.now(UTC).astimezone().isoformat(sep=" ", timespec="milliseconds")
        told = f"; the look before saw {before}" if before else ""
        self._moment = (
            f"seen by look {self.looks}, {begun:.2f} to {ended:.2f} s after polling had begun, at {now}{told}"
        )
        self._breach = breach

    def _find_breach(self) -> BaseException | None:
        __tracebackhide__ = True
        try:
            value = self._condition()
            is_well = self._is_well(value)
        except BaseException as failure:  # noqa: BLE001 - raised in the test's thread, as pytest.fail() is
            return failure
        self.last = value
        self._shown = "" if value is None else _VALUES.repr(value)
        return (
            None if is_well else AssertionError(f"{self._name} is false: it returned {_VALUES.repr(value)}")
        )

    def _is_well(self, value: object) -> bool:
        if value is None:
            # A function that asserts returns nothing; but a search that found something has to find it again.
            return self.last is None
        return value.ok if isinstance(value, CommandResult) else bool(value)


def _check_condition(condition: object) -> Callable[[], object]:
    if not callable(condition):
        raise SpecError(f"polling: {condition!r} is not a function")
    if iscoroutinefunction(condition) or isgeneratorfunction(condition) or isasyncgenfunction(condition):
        raise SpecError(
            f"polling: {condition!r} returns before it has run", resolution="use a plain function"
        )
    return condition
