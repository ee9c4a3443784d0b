"""What has to be undone on the host when one guest is removed."""

from __future__ import annotations

import threading
from collections.abc import Generator
from contextlib import ExitStack, contextmanager

from pytest_kvm.errors import GuestGone


class Teardown:
    """One guest's exit stack; it refuses new entries once the guest is removed.

    A guest is started in a thread of its own, and another thread can remove it
    at any time. The removal undoes all that the start has set up by then, and
    the start can set up nothing more.

    Args:
        name: The guest's name.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._lock = threading.Lock()
        self._stack = ExitStack()
        self._is_removed = False

    @contextmanager
    def adding(self) -> Generator[ExitStack]:
        """Yield the stack for the length of a block; :meth:`close` waits for the block's end.

        Raises:
            GuestGone: The guest was removed before.
        """
        with self._lock:
            if self._is_removed:
                raise GuestGone(f"{self._name} was removed before it was ready")
            yield self._stack

    @contextmanager
    def attempting(self) -> Generator[ExitStack]:
        """Yield a new stack within the guest's, which is closed at once if the block raises.

        All that the block set up is undone then, so that another attempt may follow.

        Raises:
            GuestGone: As in :meth:`adding`.
        """
        with self.adding() as stack:
            undo = stack.enter_context(ExitStack())
            try:
                yield undo
            except BaseException:
                undo.close()
                raise

    def close(self) -> None:
        """Undo everything, last first; nothing can be added afterwards."""
        with self._lock:
            self._is_removed = True
            self._stack.close()
