"""Keeps pytest-timeout from ending a look at guests, which has limits of its own."""

from __future__ import annotations

import signal
import threading
from collections.abc import Generator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pytest


@contextmanager
def holding_timeout(item: pytest.Item, *, can_cancel: bool) -> Generator[None]:
    """Let no time-out of pytest-timeout come during a block.

    Its exception would come where nobody catches it. What counts by a signal stands still
    meanwhile; a timer that is a thread can only be stopped for good.

    Args:
        item: The test.
        can_cancel: Whether the timer may be stopped for good, as pytest-timeout does itself after a failure.
    """
    is_main = threading.current_thread() is threading.main_thread()
    left, interval = signal.setitimer(signal.ITIMER_REAL, 0) if is_main else (0.0, 0.0)
    cancel = getattr(item.config.hook, "pytest_timeout_cancel_timer", None)
    if not left and can_cancel and cancel is not None:
        cancel(item=item)
    try:
        yield
    finally:
        if left:
            signal.setitimer(signal.ITIMER_REAL, left, interval)
