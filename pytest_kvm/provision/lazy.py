"""Values that are opened when they are first wanted."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from typing import Generic, TypeVar

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

    def get(self) -> T:
        """Return the value; open it if it is not open.

        Raises:
            Exception: Whatever the opener raises; it is called again the next time.
        """
        with self._lock:
            if not self._opened:
                self._opened.append(self._stack.enter_context(self._opener()))
            return self._opened[0]

    def close(self) -> None:
        """Close the value, if it is open."""
        with self._lock:
            self._opened.clear()
            self._stack.close()
