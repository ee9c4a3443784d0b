"""What a test has at work in a guest besides commands, and has to end by itself."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Protocol


class LiveThing(Protocol):
    """Something with one end in the guest and one on the host; ``repr()`` says what it is."""

    def close(self) -> None:
        """End it; nothing happens if it has ended."""
        ...


class LiveThings:
    """One machine's: forwarded ports and the like.

    Whoever makes them says here which are open, so that a savepoint can
    refuse to cut through them.
    """

    def __init__(self) -> None:
        self._makers: list[Callable[[], Iterable[LiveThing]]] = []

    def ask(self, maker: Callable[[], Iterable[LiveThing]]) -> None:
        """Have ``maker`` say, whenever it is asked, what is open."""
        self._makers.append(maker)

    def open(self) -> list[LiveThing]:
        """Return what is open."""
        return [thing for maker in self._makers for thing in maker()]
