"""Waiting for a condition: the only place that polls.

Every wait names what it waits for, logs only changes of what it sees, and
carries the last observation when it runs out of time.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from typing import TypeVar

import tenacity

from pytest_kvm.errors import KvmError, WaitTimeout
from pytest_kvm.plaintext import plain

T = TypeVar("T")
Clock = Callable[[], float]
"""Returns seconds that only go up; ``time.monotonic()`` is one."""
_log = logging.getLogger("pytest_kvm.wait")


class NotYet(Exception):  # noqa: N818 - it is no error: it says "ask again"
    """Raised by a condition that does not hold yet; its text is the observation, made plain."""

    def __init__(self, seen: str) -> None:
        super().__init__(plain(seen))


def wait_until(
    condition: Callable[[], T],
    *,
    describe: str,
    timeout: float,
    every: float = 0.25,
    error: type[KvmError] = WaitTimeout,
    details: Callable[[], str] = lambda: "",
    log: logging.Logger = _log,
    clock: Clock = time.monotonic,
) -> T:
    """Call ``condition`` until it returns, and return its value.

    Args:
        condition: Returns when what is waited for has come, raises
            :class:`NotYet` with what it saw when it has not. Anything else it
            raises ends the wait at once.
        describe: What is waited for, as a noun phrase ("port 80 of web").
        timeout: Seconds until ``error`` is raised.
        every: Seconds between two calls.
        error: The class raised when time runs out.
        details: Asked once, when time runs out, for facts to add.
        log: Where changes of the observation go.
        clock: Measures ``timeout``; a guest's stands still while the host has no processor for it.

    Raises:
        KvmError: of class ``error``, with the last observation.
    """
    seen = ""
    begun = clock()

    def note(state: tenacity.RetryCallState) -> None:
        nonlocal seen
        before, seen = seen, str(state.outcome.exception()) if state.outcome else ""
        if before != seen:
            log.debug("waiting for %s: %s", describe, seen)

    retrying = tenacity.Retrying(
        retry=tenacity.retry_if_exception_type(NotYet),
        stop=lambda _state: clock() - begun >= timeout,
        wait=tenacity.wait_fixed(every),
        after=note,
    )
    try:
        return retrying(condition)
    except tenacity.RetryError:
        raise error(
            f"timed out after {timeout:.0f} s waiting for {describe}; last seen: {seen or 'nothing'}",
            details=details(),
        ) from None


def time_left(timeout: float, *, clock: Clock) -> Iterator[float]:
    """Yield the seconds that are left of a time-out, at least once, until none are.

    For what ends by a clock that goes on while ``clock`` stands still: it is
    begun again for what it has lost.
    """
    begun = clock()
    yield timeout
    while (left := timeout - (clock() - begun)) > 0:
        yield left
