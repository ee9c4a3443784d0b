"""Waiting for a condition: the only module that polls.

Every wait names what it waits for and logs each observation that differs from
the one before. If time runs out, the error carries the last observation.
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
        condition: Returns if what is waited for has happened; raises
            :class:`NotYet` with its observation if not. Any other exception
            ends the wait at once.
        describe: What is waited for, as a noun phrase ("port 80 of web").
        timeout: Seconds until ``error`` is raised.
        every: Seconds between two calls.
        error: The class raised when time runs out.
        details: Called once, when time runs out; returns details for the error.
        log: Gets each observation that differs from the one before.
        clock: Measures ``timeout``. A guest's clock stands still while the host has no processor for it.

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

    For a call that limits itself by real time, while ``clock`` may stand still:
    the call ends too early then, and is made again with the seconds that are left.
    """
    begun = clock()
    yield timeout
    while (left := timeout - (clock() - begun)) > 0:
        yield left
