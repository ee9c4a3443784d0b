"""A guest that is nothing but the list of what was done to it, for tests of the undo log and of scopes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pytest_kvm.errors import SnapshotFailed

if TYPE_CHECKING:
    from pytest_kvm.provision.events import Tier
    from pytest_kvm.provision.undo_log import Point, RestorableState


class FakeState:
    """Keeps what a guest holds; strict about points: only those taken and not dropped exist."""

    def __init__(self) -> None:
        self.content: list[str] = []
        self.done: list[str] = []
        """"take", "restore" and "drop", in order."""
        self.refuses = ""
        """Why no savepoint can be taken, empty while it can."""
        self.is_lost = False
        """Whether all points but the base are gone."""
        self._base = object()
        self._points: dict[Point, list[str]] = {self._base: []}

    @property
    def base(self) -> Point:
        return self._base

    @property
    def points(self) -> int:
        """How many points there are besides the base."""
        return len(self._points) - 1

    def take(self) -> Point:
        if self.refuses:
            raise SnapshotFailed(self.refuses)
        self.done.append("take")
        point = object()
        self._points[point] = list(self.content)
        return point

    def restore(self, point: Point) -> Tier:
        if not self.reaches(point):
            raise SnapshotFailed("it is lost")
        self.done.append("restore")
        self.content = list(self._points[point])
        return "load"

    def reaches(self, point: Point) -> bool:
        return point is self._base or not self.is_lost

    def drop(self, point: Point) -> None:
        assert point is not self._base
        self.done.append("drop")
        del self._points[point]


class FakeGuest:
    """A handle whose only verbs are to change it and to look at it."""

    def __init__(self, name: str, coordinator) -> None:
        self.name = name
        self.state = FakeState()
        self._coordinator = coordinator
        real_state: RestorableState = self.state  # the type checker compares fake and protocol here
        coordinator.watch(self, real_state, reset="auto")

    def change(self, text: str) -> None:
        self._coordinator.before_use(self)
        self.state.content.append(text)

    def look(self) -> list[str]:
        self._coordinator.before_use(self)
        return list(self.state.content)

    def wait_ready(self) -> None:
        """It always is."""

    def console_tail(self, lines: int) -> str:
        return ""
