"""Values that are opened when they are first asked for."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from typing import Generic, TypeVar

from pytest_kvm.errors import GuestGone

T = TypeVar("T")


class Lazy(Generic[T]):
    """Opens a value when the first thread asks for it, and closes it once.

    Args:
        opener: Returns a context manager that yields the value.
    """

    def __init__(self, opener: Callable[[], AbstractContextManager[T]]) -> None:
        self._opener = opener
        self._lock = threading.Lock()
        self._stack = ExitStack()
        self._opened: list[T] = []
        """The value, if it is open."""
        self._is_closed = False

    def get(self) -> T:
        """Return the value; open it if it is not open.

        Raises:
            GuestGone: The run has ended: nobody would close the value any more.
            Exception: Whatever the opener raises; it is called again the next time.
        """
        with self._lock:
            if self._is_closed:
                raise GuestGone("the run has ended")
            if not self._opened:
                self._opened.append(self._stack.enter_context(self._opener()))
            return self._opened[0]

    def close(self) -> None:
        """Close the value, if it is open; it is not opened any more."""
        with self._lock:
            self._is_closed = True
            self._opened.clear()
            self._stack.close()
