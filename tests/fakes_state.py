"""A guest that is nothing but the list of what was done to it, for tests of the undo log and of scopes."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

from pytest_kvm.at_once import outcomes_at_once
from pytest_kvm.errors import SnapshotFailed
from pytest_kvm.provision.restorable_state import Restored, Traffic

if TYPE_CHECKING:
    from pytest_kvm.provision.events import Tier
    from pytest_kvm.provision.reset_coordinator import ResetCoordinator
    from pytest_kvm.provision.restorable_state import Point, RestorableState
    from pytest_kvm.provision.undo_log import Owner


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
        self.frames = 0
        """How many have come from other guests."""
        self.frames_told = 0
        """How many have come to other guests."""
        self.is_detached = False
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
        self.is_detached = False
        self.content = list(self._points[point])
        return "load"

    def take_all(self, states: Sequence[FakeState]) -> list[Point | Exception]:
        assert self in states
        return outcomes_at_once([state.take for state in states])

    def restore_all(self, points: Sequence[tuple[FakeState, Point]]) -> list[Restored | Exception]:
        assert self in dict(points)
        for state, _ in points:
            state.detach()
        tiers = outcomes_at_once([partial(state.restore, point) for state, point in points])
        return [each if isinstance(each, Exception) else Restored(each, 1.0) for each in tiers]

    def reaches(self, point: Point) -> bool:
        return point is self._base or not self.is_lost

    def drop(self, point: Point) -> None:
        assert point is not self._base
        self.done.append("drop")
        del self._points[point]

    @property
    def traffic_at_base(self) -> Traffic | None:
        return Traffic(0, 0)

    def traffic(self) -> Traffic:
        return Traffic(self.frames, self.frames_told)

    def detach(self) -> None:
        self.is_detached = True


class FakeSegment:
    """Joins guests, and is their card on it as well."""

    def __init__(self, *guests: FakeGuest) -> None:
        self.guests = list(guests)
        self.segment = self
        for each in guests:
            each.nics += (self,)


class FakeGuest:
    """A handle whose only verbs are to change it, to look at it, and to talk to another guest."""

    def __init__(self, name: str, coordinator) -> None:
        self.name = name
        self.nics: tuple[FakeSegment, ...] = ()
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

    def talk_to(self, other: FakeGuest, text: str) -> list[str]:
        """Change another guest by a frame; return what that guest held before."""
        self._coordinator.before_use(self)
        before = list(other.state.content)
        assert not self.state.is_detached
        assert not other.state.is_detached
        other.state.frames += 1
        self.state.frames_told += 1
        other.state.content.append(text)
        return before

    def wait_ready(self) -> None:
        """It always is."""

    def console_tail(self, lines: int) -> str:
        return ""


def end(coordinator: ResetCoordinator, owner: Owner) -> None:
    """Have an owner end, as the plugin's scopes do."""
    owner.ended = True
    coordinator.cut_off(owner)
