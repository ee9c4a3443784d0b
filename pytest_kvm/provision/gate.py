"""What one guest holds on the host, and whether anybody still wants it."""

from __future__ import annotations

import threading
from collections.abc import Generator
from contextlib import ExitStack, contextmanager

from pytest_kvm.errors import GuestGone


class Gate:
    """Lets a guest's birth take hold of things until the guest is given up.

    Args:
        name: The guest's.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._lock = threading.Lock()
        self._stack = ExitStack()
        self._unwanted = False

    @contextmanager
    def holding(self) -> Generator[ExitStack]:
        """Yield the stack that undoes what the block sets up; :meth:`close` waits for the block.

        Raises:
            GuestGone: The guest was given up before.
        """
        with self._lock:
            if self._unwanted:
                raise GuestGone(f"{self._name} was removed before it was ready")
            yield self._stack

    @contextmanager
    def trying(self) -> Generator[ExitStack]:
        """Yield a stack of its own, which a block that fails undoes at once: another may be tried.

        Raises:
            GuestGone: As in :meth:`holding`.
        """
        with self.holding() as stack:
            undo = stack.enter_context(ExitStack())
            try:
                yield undo
            except BaseException:
                undo.close()
                raise

    def close(self) -> None:
        """Give the guest up: undo everything, last first."""
        with self._lock:
            self._unwanted = True
            self._stack.close()
