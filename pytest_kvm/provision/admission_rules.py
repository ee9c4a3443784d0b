"""The rules of admission: who may take how much of the machine, and when. Pure.

docs/explanation/admission.md says why they keep nobody waiting for ever.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

if TYPE_CHECKING:
    from pytest_kvm.spec.guest import GuestSpec


class Amount(NamedTuple):
    """How much of each resource."""

    memory: float = 0
    """MiB."""
    vcpus: float = 0
    guests: float = 0

    @classmethod
    def of(cls, spec: GuestSpec) -> Amount:
        """Return what one guest takes."""
        return cls(math.ceil(spec.memory_kib / 1024), spec.vcpus, 1)

    def plus(self, other: Amount) -> Amount:
        """Return both together."""
        return self._each(operator.add, other)

    def minus(self, other: Amount) -> Amount:
        """Return what is left without the other, never less than nothing."""
        return self._each(lambda own, its: max(own - its, 0), other)

    def or_more(self, other: Amount) -> Amount:
        """Return the greater amount of each resource."""
        return self._each(max, other)

    def at_most(self, other: Amount) -> Amount:
        """Return the smaller amount of each resource."""
        return self._each(min, other)

    def fits_beside(self, taken: Amount, limits: Amount) -> bool:
        """Say whether it may be added to what is taken; only resources that it asks for are looked at."""
        return all(own <= 0 or own + has <= most for own, has, most in zip(self, taken, limits, strict=True))

    def _each(self, combine: Callable[[float, float], float], other: Amount) -> Amount:
        return Amount(*map(combine, self, other))


NOTHING = Amount()
USUAL = Amount(memory=1024, vcpus=2, guests=1)
"""What is assumed of a guest whose spec is not known yet: what a spec without fields takes."""


def total(amounts: Iterable[Amount]) -> Amount:
    """Return all of them together."""
    return reduce(Amount.plus, amounts, NOTHING)


class Grant(NamedTuple):
    """What one machine has, or what is kept for guests that will be started soon."""

    name: str
    """The guest's name."""
    amount: Amount
    is_leaving: bool
    """Whether it is given back soon whatever happens: a spare clone, or a guest that is being removed."""
    is_wide: bool
    """Whether its guest outlives the test."""
    test: str
    """Who asked for it."""
    pids: tuple[int, ...]
    """QEMU processes that it is for, also those that have ended; empty before they run."""


class Wait(NamedTuple):
    """What a process waits for."""

    ticket: int
    """The lower, the earlier."""
    amount: Amount


@dataclass(frozen=True, kw_only=True)
class Holder:
    """What one process has, waits for, and will want."""

    pid: int
    test: str
    """What it is doing."""
    limits: Amount
    """Its own: what all guests of all processes may have before it takes more."""
    peak: Amount = NOTHING
    """The most that its guests will have at a time, as far as it knows."""
    grants: tuple[Grant, ...] = ()
    waits: tuple[Wait, ...] = ()

    @property
    def has(self) -> Amount:
        """What it gives back only when it no longer needs it."""
        return total(grant.amount for grant in self.grants if not grant.is_leaving)

    @property
    def has_in_all(self) -> Amount:
        """What nobody else can have now."""
        return total(grant.amount for grant in self.grants)

    @property
    def waits_for(self) -> Amount:
        """All that it waits for."""
        return total(wait.amount for wait in self.waits)

    def with_grant(self, amount: Amount, *, is_wide: bool) -> Holder:
        """Return the holder with one grant more."""
        grant = Grant("", amount, is_leaving=False, is_wide=is_wide, test="", pids=())
        return replace(self, grants=(*self.grants, grant))

    def is_stricter_than(self, other: Holder) -> bool:
        """Say whether a limit of it is lower than another's."""
        return any(own < its for own, its in zip(self.limits, other.limits, strict=True))

    def to_json(self) -> dict[str, Any]:
        """Return it as the register stores it."""
        limits = [None if math.isinf(most) else most for most in self.limits]
        return {
            "pid": self.pid,
            "test": self.test,
            "limits": limits,
            "peak": self.peak,
            "grants": self.grants,
            "waits": self.waits,
        }

    @classmethod
    def from_json(cls, stored: dict[str, Any]) -> Holder:
        """Read what :meth:`to_json` has returned.

        Raises:
            LookupError, TypeError, ValueError: It is something else.
        """
        return cls(
            pid=stored["pid"],
            test=stored["test"],
            limits=Amount(*(math.inf if most is None else most for most in stored["limits"])),
            peak=Amount(*stored["peak"]),
            grants=tuple(
                Grant(name, Amount(*amount), is_leaving, is_wide, test, tuple(pids))
                for name, amount, is_leaving, is_wide, test, pids in stored["grants"]
            ),
            waits=tuple(Wait(ticket, Amount(*amount)) for ticket, amount in stored["waits"]),
        )


Reason = Literal["", "limit", "memory", "turn", "need", "own", "deadlock"]


class Decision(NamedTuple):
    """What becomes of a wish for room."""

    answer: Literal["yes", "later", "never"]
    reason: Reason = ""
    """Why not: ``limit``, it is reached; ``memory``, other programs have it; ``turn``, another process
    was earlier; ``need``, others could not get what they will want; ``own``, this process
    itself has too much; ``deadlock``, it and others wait for each other."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """A wish for room, with all that its decision depends on."""

    me: Holder
    """Without the wish."""
    wish: Wait
    is_wide: bool = False
    """Whether one of the guests outlives the test."""
    others: Sequence[Holder] = ()
    memory_left: float = math.inf
    """MiB that guests can have beside what they have been granted, as other programs have the rest."""

    def decide(self) -> Decision:
        """Decide it."""
        me, wish = self.me, self.wish
        if not wish.amount.fits_beside(me.has.plus(me.waits_for), me.limits):
            return Decision("never", "own")
        late = self._why_later()
        if late is None:
            return Decision("yes")
        return Decision("never", "deadlock") if self._is_deadlock() else late

    def _why_later(self) -> Decision | None:
        me, amount = self.me, self.wish.amount
        taken = total(each.has_in_all for each in (me, *self.others))
        if not amount.fits_beside(taken, me.limits):
            return Decision("later", "limit")
        if amount.memory > self.memory_left:
            return Decision("later", "memory")
        if self.who_goes_first() is not None:
            return Decision("later", "turn")
        after = [me.with_grant(amount, is_wide=self.is_wide), *self.others]
        if not is_safe(self._with_less_memory(after)):
            return Decision("later", "need")
        return None

    def who_goes_first(self) -> Holder | None:
        """Return the process that waits for longest, if this one has to stand back for it.

        A process that has something goes first where another waits for just that.
        One with lower limits than ours does not hold us up.
        """
        before = [
            (wait.ticket, wait, holder)
            for holder in self.others
            for wait in holder.waits
            if wait.ticket < self.wish.ticket and not holder.is_stricter_than(self.me)
        ]
        if not before:
            return None
        _, wait, first = min(before, key=operator.itemgetter(0))
        return first if self.me.has == NOTHING or self._would_help(first, wait) else None

    def _would_help(self, first: Holder, wait: Wait) -> bool:
        """Say whether another gets what it waits for in the end if all that wait stand back for it.

        All that are at work then finish, or come to wait, too.
        """
        waiting = [holder for holder in self.others if holder.waits and holder is not first]
        others = [each for each in waiting if not each.is_stricter_than(first)]
        if any(each.ticket < wait.ticket for holder in others for each in holder.waits):
            return False  # it waits for yet another one
        if not wait.amount.fits_beside(total(each.has for each in (self.me, *waiting, first)), first.limits):
            return False
        after = [self.me, *waiting, first.with_grant(wait.amount, is_wide=True)]
        return is_safe(after)

    def _is_deadlock(self) -> bool:
        """Say whether some processes wait for each other for ever, and this wish is the latest of theirs."""
        return self._is_latest_of(self._stuck([self._me_waiting, *self.others]))

    @property
    def _me_waiting(self) -> Holder:
        return replace(self.me, waits=(*self.me.waits, self.wish))

    def _stuck(self, holders: Sequence[Holder]) -> list[Holder]:
        return _unable_to_finish(
            holders, keeps=lambda holder: holder.has, needs=lambda holder: holder.waits_for
        )

    def _is_latest_of(self, stuck: Sequence[Holder]) -> bool:
        tickets = [wait.ticket for holder in stuck for wait in holder.waits]
        return self.wish.ticket in tickets and max(tickets) == self.wish.ticket

    def _with_less_memory(self, holders: Sequence[Holder]) -> list[Holder]:
        """Return holders that can have no more memory than there is: other programs may keep the rest."""
        most = total(each.has_in_all for each in (self.me, *self.others)).memory + self.memory_left
        return [
            replace(each, limits=each.limits.at_most(Amount(most, math.inf, math.inf))) for each in holders
        ]

    def only_other_programs_can_help(self) -> bool:
        """Say whether the memory that this wish lacks could not be there even if others gave all back."""
        holders = self._with_less_memory([self._me_waiting, *self.others])
        stuck = self._stuck(holders)
        others = [each for each in holders[1:] if not any(each is one for one in stuck)]
        may_come = sum(each.has_in_all.memory for each in others)
        if self.wish.amount.memory <= self.memory_left + may_come:
            return False
        return len(stuck) < 2 or self._is_latest_of(stuck)


def is_safe(holders: Sequence[Holder]) -> bool:
    """Say whether all of them can get what they will want, in some order, if no others come.

    This is the banker's algorithm (Dijkstra, EWD 623). But each holder has limits of
    its own, which it looks at only when it takes more.
    """
    return not _unable_to_finish(holders, keeps=_keeps, needs=_will_want)


def _unable_to_finish(
    holders: Sequence[Holder],
    *,
    keeps: Callable[[Holder], Amount],
    needs: Callable[[Holder], Amount],
) -> list[Holder]:
    """Return those that could not get what they need, even if all that can get it finish and give all back.

    Args:
        holders: Those that keep nothing hold nobody up, and are not looked at.
        keeps: Returns what a holder keeps until it has got what it needs.
        needs: Returns what a holder needs beside that.
    """
    left: list[Holder] = [holder for holder in holders if keeps(holder) != NOTHING]
    while left:
        taken = total(keeps(holder) for holder in left)
        stuck = [holder for holder in left if not needs(holder).fits_beside(taken, holder.limits)]
        if len(stuck) == len(left):
            break
        left = stuck
    return left


def _keeps(holder: Holder) -> Amount:
    """Return what it will have when it asks for more the next time.

    One that is at work gives back the guests of its test before that.
    """
    if holder.waits:
        return holder.has
    return total(grant.amount for grant in holder.grants if grant.is_wide and not grant.is_leaving)


def _will_want(holder: Holder) -> Amount:
    """Return what it will want at a time beside what it keeps, but not more than its limits."""
    kept = _keeps(holder)
    return holder.peak.minus(kept).or_more(holder.waits_for).at_most(holder.limits.minus(kept))
