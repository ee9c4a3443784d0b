"""``Block``: what a ``with`` block ends."""

from __future__ import annotations

from abc import ABC, abstractmethod
from types import TracebackType
from typing import Self


class Block(ABC):
    """What can be ended by a verb, or by the end of a ``with`` block."""

    @abstractmethod
    def _end(self) -> None:
        """End it; a second call does nothing."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End it; if the block has failed, a failure of this is added to that as a note."""
        try:
            self._end()
        except Exception as failure:
            if error is None:
                raise
            error.add_note(f"and {self}: {failure!r}")
