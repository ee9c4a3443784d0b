"""Doing several things at the same time, each in a thread of its own."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, wait
from functools import partial
from typing import Any, TypeVar

T = TypeVar("T")
_log = logging.getLogger("pytest_kvm.at_once")
_STEP = 1.0
"""Seconds after which Ctrl-C is noticed."""


def do_at_once(actions: Sequence[Callable[[], T]]) -> list[T]:
    """Do all actions at the same time, and return what they have returned once all are done.

    Of several failures the first in the order of the actions is raised, and the
    others are logged.

    Raises:
        Exception: Whatever an action raises.
    """
    done: list[T] = []
    failures: list[Exception] = []
    for outcome in outcomes_at_once(actions):
        if isinstance(outcome, Exception):
            failures.append(outcome)
        else:
            done.append(outcome)
    raise_first(failures)
    return done


def raise_first(failures: Sequence[Exception]) -> None:
    """Raise the first of some failures, if there are any, and log the others.

    Raises:
        Exception: The first one.
    """
    for failure in failures[1:]:
        _log.warning("another one failed at the same time: %s", failure)
    if failures:
        raise failures[0]


def outcomes_at_once(actions: Sequence[Callable[[], T]]) -> list[T | Exception]:
    """Do all actions at the same time; return what each has returned, or the exception that it has raised.

    The threads are daemons: a process that is interrupted can end before its
    actions do.
    """
    if len(actions) == 1:
        return [_outcome(actions[0])]
    futures = [in_thread(partial(_outcome, action)) for action in actions]
    wait_for(futures)
    return [future.result() for future in futures]


def wait_for(futures: Sequence[Future[Any]]) -> None:
    """Wait until all futures are done.

    It waits in steps, because a signal ends a wait for a lock only if it comes during
    the wait: after a Ctrl-C that comes just before, Python would notice it at the end.
    """
    while wait(futures, timeout=_STEP).not_done:
        pass


def _outcome(action: Callable[[], T]) -> T | Exception:
    try:
        return action()
    except Exception as failure:  # noqa: BLE001 - returned to the caller
        return failure


def in_thread(action: Callable[[], T]) -> Future[T]:
    """Begin an action in a daemon thread, and return the future of what it returns or raises."""
    future: Future[T] = Future()

    def work() -> None:
        try:
            future.set_result(action())
        except BaseException as failure:  # noqa: BLE001 - raised where the future is waited for
            future.set_exception(failure)

    threading.Thread(target=work, name="pytest-kvm-at-once", daemon=True).start()
    return future
