"""Room for guests on this machine: asked for before they start, and given back after their end.

All processes that use the same register count each other's guests: xdist workers,
and other runs of the user. A test's guests get their room together, or none of them.
"""

from __future__ import annotations

import logging
import math
import os
import time
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

from pytest_kvm.errors import GuestGone, HostError, NoCapacity
from pytest_kvm.host.limits import Limits
from pytest_kvm.host.register import Register
from pytest_kvm.host.resources import memory_available_mib, memory_touched_mib
from pytest_kvm.provision.admission_rules import (
    NOTHING,
    USUAL,
    Amount,
    Case,
    Decision,
    Grant,
    Holder,
    Wait,
    total,
)
from pytest_kvm.provision.admission_words import (
    guests_in_words,
    not_enough_memory,
    refusal,
    too_late,
    why_later,
)
from pytest_kvm.provision.room import Room, Tell
from pytest_kvm.waiting import NotYet, wait_until

_log = logging.getLogger("pytest_kvm.admission")
_EVERY = 0.2
_FOR_OTHER_PROGRAMS = 60.0
"""Seconds to wait for memory that only other programs could give back."""


@dataclass(eq=False, kw_only=True)
class _Wish:
    """Room that is asked for."""

    amount: Amount
    is_wide: bool
    grant: Callable[[], None]
    words: str
    """What it is for, from :func:`guests_in_words`."""
    is_wanted: Callable[[], bool] = lambda: True
    begun: float = field(default_factory=time.monotonic)


class _TookTooLong(NoCapacity):
    pass


class _NotWanted(Exception):  # noqa: N818 - it is no error: its caller knows what to say
    """Nobody wants the room any longer."""


class Admission:
    """Asks for the room of one process's guests.

    Args:
        register: Shared with all processes that count each other's guests.
        limits: This run's limits.
        timeout: Returns how many seconds may be waited for room.
        overhead: Returns how much memory (MiB) a QEMU takes beside its guest's.
    """

    def __init__(
        self,
        register: Register,
        limits: Limits,
        *,
        timeout: Callable[[], float],
        overhead: Callable[[], int] = int,
    ) -> None:
        self._register = register
        self._limits = limits
        self._own_limits = Amount(*(ceiling.most for ceiling in limits.ceilings))
        self._timeout = timeout
        self._overhead = overhead
        self._test = ""
        self._peak = NOTHING
        self._reserved = NOTHING
        """Granted for guests that will be started soon."""
        self._reserved_is_wide = False
        self._rooms: list[Room] = []
        """Those of which something is granted."""
        self._waiting: dict[_Wish, Wait] = {}
        self._is_unwritten = False
        """Whether something has changed that could not be written down."""
        self._give_way: Callable[[], bool] = lambda: False

    # ------------------------------------------------------------ what tests need

    def note_test(self, test: str) -> None:
        """Note what the process is doing, for those who wait for it."""
        self._test = test
        if self._rooms or self._is_unwritten:
            self.note()

    def reserve(
        self,
        amounts: Sequence[Amount | None],
        *,
        peak: Amount = NOTHING,
        is_wide: bool = False,
        tell: Tell,
    ) -> None:
        """Wait for room for guests that will be started soon, all together.

        Args:
            amounts: What each needs; None if that is not known yet. Each guest that is started takes its
                part, and :meth:`end_reservation` gives back what is left.
            peak: The most that the guests of this process will have at a time, as far as it is known.
            is_wide: Whether one of the guests outlives the test.
            tell: Is told what is waited for.

        Raises:
            NoCapacity: There is never room for them, or there was none in time.
        """
        self._peak = self._peak.or_more(peak)
        amount = self._estimate(amounts)
        self._limits.check(amount, whose=f"the guests of {self._test}" if self._test else "the guests")

        def grant() -> None:
            self._reserved = self._reserved.plus(amount)
            self._reserved_is_wide = is_wide

        self._ask(_Wish(amount=amount, is_wide=is_wide, grant=grant, words=guests_in_words(amount)), tell)

    def _estimate(self, amounts: Sequence[Amount | None]) -> Amount:
        """Return what guests need together; those of unknown needs count only where a usual guest can fit."""
        estimate = total(USUAL if amount is None else amount for amount in amounts)
        if estimate.fits_beside(NOTHING, self._own_limits):
            return estimate
        return total(amount for amount in amounts if amount is not None)

    def end_reservation(self, *, keep: Amount = NOTHING) -> None:
        """Give back what was reserved and not used, but for a part."""
        if self._reserved != self._reserved.at_most(keep):
            self._reserved = self._reserved.at_most(keep)
            self.note()

    @contextmanager
    def reserved(self, amounts: Sequence[Amount], *, tell: Tell) -> Generator[None]:
        """Reserve room for the guests that are started in a block; see :meth:`reserve`."""
        before = self._reserved
        self.reserve(amounts, tell=tell)
        try:
            yield
        finally:
            self.end_reservation(keep=before)

    # ------------------------------------------------------------ rooms

    def room(self, name: str, amount: Amount, *, is_wide: bool = False) -> Room:
        """Return a guest's room, of which nothing is granted yet.

        Args:
            name: The guest's name.
            amount: What the guest needs.
            is_wide: Whether the guest outlives the test.
        """
        return Room(admission=self, name=name, amount=amount, test=self._test, is_wide=is_wide)

    def take_reserved(self, room: Room) -> None:
        """See :meth:`Room.take_reserved`."""
        if self._reserved == NOTHING:
            return
        with self._register.turn():
            if not room.is_released:
                granted = self._reserved.at_most(room.amount)
                self._reserved = self._reserved.minus(granted)
                self._grant(room, granted)

    def wait_for(self, room: Room, tell: Tell) -> None:
        """See :meth:`Room.wait`."""
        self._limits.check(room.amount, whose=room.name)
        wish = _Wish(
            amount=room.amount.minus(room.granted),
            is_wide=room.is_wide,
            grant=lambda: self._grant(room, room.amount),
            words=guests_in_words(room.amount),
            is_wanted=lambda: not room.is_released,
        )
        try:
            self._ask(wish, tell)
        except _NotWanted:
            raise GuestGone(f"{room.name} was removed before there was room for it") from None

    def room_if_free(self, name: str, amount: Amount) -> Room | None:
        """Take room that can be done without, if there is some and no process waits for any."""
        room = self.room(name, amount)
        room.is_leaving = True
        with self._register.turn():
            case = self._case(_Wish(amount=amount, is_wide=False, grant=lambda: None, words=""))
            is_free = not any(holder.waits for holder in (case.me, *case.others))
            if not is_free or case.decide().answer != "yes":
                return None
            self._grant(room, amount)
        return room

    def release(self, room: Room) -> None:
        """See :meth:`Room.release`."""
        with self._register.lock:
            is_granted = room in self._rooms
            room.is_released = True
            if is_granted:
                self._rooms.remove(room)
        if is_granted:
            self.note()

    def note(self) -> None:
        """Write down what has changed; if that cannot be done now, the next test does it at the latest."""
        try:
            with self._register.turn():
                self._write()
        except HostError as failure:
            self._is_unwritten = True
            _log.warning("what the guests of this process have could not be written down: %s", failure)

    def on_shortage(self, give_way: Callable[[], bool]) -> None:
        """Have something asked, from any thread, to give up what tests can do without.

        Args:
            give_way: Returns whether there was any.
        """
        self._give_way = give_way

    def others_wait(self) -> bool:
        """Say whether another process waits for room."""
        with self._register.turn():
            return any(holder.waits for holder in self._others())

    def close(self) -> None:
        """Give everything back."""
        self._register.close()

    # ------------------------------------------------------------ asking

    def _ask(self, wish: _Wish, tell: Tell) -> None:
        if wish.amount == NOTHING:
            return
        try:
            decision, case = self._try(wish)
            if decision.answer == "later" and self._has_given_way(decision):
                decision, case = self._try(wish)
            if decision.answer == "later":
                decision, case = self._wait(wish, tell)
        finally:
            if self._waiting.pop(wish, None) is not None:
                self.note()
        if decision.answer == "never":
            raise refusal(decision, case, wanted=wish.words, limits=self._limits)

    def _try(self, wish: _Wish) -> tuple[Decision, Case]:
        with self._register.turn():
            if not wish.is_wanted():
                raise _NotWanted
            case = self._case(wish)
            decision = case.decide()
            if decision.answer == "yes":
                self._waiting.pop(wish, None)
                wish.grant()
                self._write()
            elif decision.answer == "later" and wish not in self._waiting:
                self._waiting[wish] = case.wish
                self._write()
        return decision, case

    def _wait(self, wish: _Wish, tell: Tell) -> tuple[Decision, Case]:
        told = ""

        def look() -> tuple[Decision, Case]:
            nonlocal told
            decision, case = self._try(wish)
            if decision.answer != "later":
                return decision, case
            self._has_given_way(decision)
            why = why_later(decision, case, limits=self._limits)
            what = f"{decision.reason} {[holder.pid for holder in case.others]}"
            if what != told:  # not for each test that others begin
                told = what
                _log.info("%s waits for room for %s: %s", self._test, wish.words, why)
                tell(f"waiting for room for {wish.words}: {why}")
            has_waited = time.monotonic() - wish.begun > _FOR_OTHER_PROGRAMS
            if decision.reason == "memory" and has_waited and case.only_other_programs_can_help():
                raise not_enough_memory(wish.words, case)
            raise NotYet(why)

        try:
            return wait_until(
                look,
                describe=f"room for {wish.words}",
                timeout=self._timeout(),
                every=_EVERY,
                error=_TookTooLong,
            )
        except _TookTooLong as late:
            raise too_late(late.brief) from None

    def _has_given_way(self, decision: Decision) -> bool:
        return decision.reason in {"limit", "memory"} and self._give_way()

    # ------------------------------------------------------------ in a turn

    def _case(self, wish: _Wish) -> Case:
        others = self._others()
        me = self._me(without=wish)
        wait = self._waiting.get(wish)
        if wait is None:
            tickets = [each.ticket for holder in (me, *others) for each in holder.waits]
            wait = Wait(max(tickets, default=0) + 1, wish.amount)
        grants = [grant for holder in (me, *others) for grant in holder.grants]
        left = self._memory_left(grants) - self._overhead() * wish.amount.guests
        return Case(me=me, wish=wait, is_wide=wish.is_wide, others=others, memory_left=left)

    def _me(self, *, without: _Wish | None = None) -> Holder:
        grants = [
            Grant(room.name, room.granted, room.is_leaving, room.is_wide, room.test, room.pids)
            for room in self._rooms
        ]
        if self._reserved != NOTHING:
            grants.append(
                Grant(
                    "reserved",
                    self._reserved,
                    is_leaving=False,
                    is_wide=self._reserved_is_wide,
                    test=self._test,
                    pids=(),
                )
            )
        return Holder(
            pid=os.getpid(),
            test=self._test,
            limits=self._own_limits,
            peak=self._peak,
            grants=tuple(grants),
            waits=tuple(wait for wish, wait in self._waiting.items() if wish is not without),
        )

    def _others(self) -> list[Holder]:
        holders: list[Holder] = []
        for stored in self._register.others():
            with suppress(LookupError, TypeError, ValueError):  # written by other hands
                holders.append(Holder.from_json(stored))
        return holders

    def _memory_left(self, grants: Iterable[Grant]) -> float:
        """Return the memory that is free, without what guests have been granted and not taken yet."""
        if not self._limits.is_measured:
            return math.inf
        overhead = self._overhead()

        def not_taken_yet(grant: Grant) -> float:
            whole = grant.amount.memory + overhead * grant.amount.guests
            return max(0, whole - sum(map(memory_touched_mib, grant.pids)))

        return memory_available_mib() - sum(map(not_taken_yet, grants))

    def _grant(self, room: Room, amount: Amount) -> None:
        room.granted = amount
        if room not in self._rooms:
            self._rooms.append(room)
        self._write()

    def _write(self) -> None:
        self._register.write(self._me().to_json())
        self._is_unwritten = False
