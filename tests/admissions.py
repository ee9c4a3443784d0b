"""Processes that ask for room on this machine for guests, each with a register of its own."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Literal

from pytest_kvm.errors import NoCapacity
from pytest_kvm.host.limits import Ceiling, Limits
from pytest_kvm.host.register import Register
from pytest_kvm.provision.admission import Admission
from pytest_kvm.provision.admission_rules import Amount, total
from pytest_kvm.provision.room import Room

ROOT = Path(__file__).parent.parent


def limits(*, memory: float = math.inf, vcpus: float = math.inf, guests: float = math.inf) -> Limits:
    """Return limits that somebody has chosen."""

    def ceiling(resource: Literal["memory", "vcpus", "guests"], most: float) -> Ceiling:
        return Ceiling(resource=resource, most=most, reason="said by a test")

    return Limits(
        memory=ceiling("memory", memory),
        vcpus=ceiling("vcpus", vcpus),
        guests=ceiling("guests", guests),
        is_measured=False,
    )


def new_admission(folder: Path, *, test: str = "test_x", timeout: float = 20, **most: float) -> Admission:
    """Return what a process asks for room."""
    admission = Admission(Register(folder), limits(**most), timeout=lambda: timeout)
    admission.note_test(test)
    return admission


def take(admission: Admission, *amounts: Amount, tell=print) -> list[Room]:
    """Take room for guests that are started together."""
    with admission.reserved(amounts, tell=tell):
        rooms = [admission.room(f"guest{number}", amount) for number, amount in enumerate(amounts, start=1)]
        for room in rooms:
            room.take_reserved()
        return rooms


class OtherProcess:
    """Another process that asks for room, and does as it is told.

    Args:
        folder: Shared with the rest.
        most: Its limits.
    """

    def __init__(self, folder: Path, **most: float) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.admissions", str(folder), json.dumps(most)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
        )
        self.pid = self._process.pid
        assert self.hear() == "ready"

    def tell(self, verb: str, number: int = 1, *, memory: float = 0) -> None:
        """Have it ``take`` that many guests, ``give`` all back, or ``race``, and go on at once."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps([verb, number, memory]) + "\n")
        self._process.stdin.flush()

    def hear(self) -> str:
        """Return what came of it; waits for that."""
        assert self._process.stdout is not None
        return self._process.stdout.readline().strip()

    def take(self, number: int = 1, *, memory: float = 0) -> str:
        """Have it take guests, and return what came of it."""
        self.tell("take", number, memory=memory)
        return self.hear()

    def give(self) -> str:
        """Have it give all back."""
        self.tell("give")
        return self.hear()

    def kill(self) -> None:
        """End it as nothing else can."""
        self._process.kill()
        self._process.wait()

    def close(self) -> None:
        """End it."""
        self._process.kill()
        self._process.communicate()


def _race(mine: Admission, rounds: int) -> float:
    """Take two guests and give them back, again and again; return the most that all had at a time."""
    most = 0.0
    for _ in range(rounds):
        rooms = take(mine, Amount(guests=1), Amount(guests=1), tell=str)
        with mine._register.turn():
            everybody = [mine._me(), *mine._others()]
            most = max(most, total(each.has for each in everybody).guests)
        for room in rooms:
            room.release()
    return most


def main() -> None:
    """Do as the parent says."""
    mine = new_admission(Path(sys.argv[1]), test=f"test of {os.getpid()}", **json.loads(sys.argv[2]))
    rooms: list[Room] = []
    _say("ready")
    for line in sys.stdin:
        verb, number, memory = json.loads(line)
        said = "done"
        if verb == "give":
            while rooms:
                rooms.pop().release()
        elif verb == "race":
            said = str(_race(mine, number))
        else:
            try:
                rooms += take(mine, *[Amount(memory=memory, guests=1)] * number, tell=str)
            except NoCapacity as failure:
                said = failure.brief
        _say(said)


def _say(what: str) -> None:
    sys.stdout.write(f"{what}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
