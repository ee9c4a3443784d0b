"""A machine with room for all guests."""

from __future__ import annotations

from typing import Any

from pytest_kvm.provision.admission_rules import Amount
from pytest_kvm.provision.room import Room

ONE = Amount(memory=512, vcpus=2, guests=1)


class FreeAdmission:
    """Grants all rooms until it is told that there are none, and writes down which it has."""

    def __init__(self) -> None:
        self.is_full = False
        self.somebody_waits = False
        self.rooms: list[Room] = []
        self.give_way = bool

    def room(self, name: str, amount: Amount = ONE) -> Room:
        admission: Any = self
        room = Room(
            admission=admission, name=name, amount=amount, test="test_x", is_wide=True, granted=amount
        )
        self.rooms.append(room)
        return room

    def room_if_free(self, name: str, amount: Amount) -> Room | None:
        return None if self.is_full else self.room(name, amount)

    def take_reserved(self, room: Room) -> None:
        pass

    def wait_for(self, room: Room, tell: object) -> None:
        pass

    def release(self, room: Room) -> None:
        if room in self.rooms:
            self.rooms.remove(room)

    def note(self) -> None:
        pass

    def on_shortage(self, give_way: Any) -> None:
        self.give_way = give_way

    def others_wait(self) -> bool:
        return self.somebody_waits


def free_room(name: str) -> Room:
    """Return a room that is granted."""
    return FreeAdmission().room(name)
