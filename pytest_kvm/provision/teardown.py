"""What has to be undone on the host when one guest is removed."""

from __future__ import annotations

import threading
from collections.abc import Generator
from contextlib import ExitStack, contextmanager

from pytest_kvm.errors import GuestGone


class Teardown:
    """One guest's exit stack, which takes nothing more once the guest is removed.

    A guest starts in a thread of its own and can be removed from another at
    any time: whatever the start sets up is either undone by that or not set
    up at all.

    Args:
        name: The guest's.
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
        """Yield a stack of its own, which is closed at once if the block raises.

        What the block set up is gone then, so that another attempt may follow.

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
