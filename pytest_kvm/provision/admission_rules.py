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
    is_spare: bool
    """Whether it is given back as soon as a guest needs it."""
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
        return total(grant.amount for grant in self.grants if not grant.is_spare)

    @property
    def has_in_all(self) -> Amount:
        """What nobody else can have now."""
        return total(grant.amount for grant in self.grants)

    @property
    def waits_for(self) -> Amount:
        """All that it waits for."""
        return total(wait.amount for wait in self.waits)

    def with_less_memory(self, most: float) -> Holder:
        """Return the holder with a limit of memory that is not higher than this."""
        return replace(self, limits=self.limits.at_most(Amount(most, math.inf, math.inf)))

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
                Grant(name, Amount(*amount), is_spare, test, tuple(pids))
                for name, amount, is_spare, test, pids in stored["grants"]
            ),
            waits=tuple(Wait(ticket, Amount(*amount)) for ticket, amount in stored["waits"]),
        )


Reason = Literal["", "limit", "memory", "turn", "others' need", "own", "deadlock"]


class Decision(NamedTuple):
    """What becomes of a wish for room."""

    answer: Literal["yes", "later", "never"]
    reason: Reason = ""
    """Why not: ``limit``, it is reached; ``memory``, other programs have it; ``turn``, another process
    was earlier; ``others' need``, others could not get what they will want; ``own``, this process
    itself has too much; ``deadlock``, it and others wait for each other."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """A wish for room, with all that its decision depends on."""

    me: Holder
    """Without the wish."""
    wish: Wait
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
        # A process that has nothing keeps to the order. One that has something may go
        # first, as others may be waiting for just that.
        if me.has == NOTHING and any(map(self._is_before_me, self.others)):
            return Decision("later", "turn")
        granted = Grant("", amount, is_spare=False, test="", pids=())
        after = [replace(me, grants=(*me.grants, granted)), *self.others]
        # All memory that guests can have now: what other programs have may never be given back.
        memory = taken.memory + self.memory_left
        if unable_to_finish([each.with_less_memory(memory) for each in after], need=_will_want):
            return Decision("later", "others' need")
        return None

    def _is_before_me(self, other: Holder) -> bool:
        """Say whether another has waited for longer; one with lower limits than ours does not hold us up."""
        is_stricter = any(its < own for its, own in zip(other.limits, self.me.limits, strict=True))
        return not is_stricter and any(wait.ticket < self.wish.ticket for wait in other.waits)

    def _is_deadlock(self) -> bool:
        """Say whether some processes wait for each other for ever, and this wish is the latest of theirs."""
        me = replace(self.me, waits=(*self.me.waits, self.wish))
        stuck = unable_to_finish([me, *self.others], need=lambda holder: holder.waits_for)
        latest = max((wait.ticket for each in stuck for wait in each.waits), default=-1)
        return any(each is me for each in stuck) and latest == self.wish.ticket


def unable_to_finish(holders: Sequence[Holder], *, need: Callable[[Holder], Amount]) -> list[Holder]:
    """Return those that could not get what they need, even if all that can get it finish and give all back.

    This is the banker's algorithm (Dijkstra, EWD 623). But each holder has limits of
    its own, which it looks at only when it takes more.

    Args:
        holders: Those that have nothing keep nobody waiting, and are not looked at.
        need: Returns what a holder needs beside what it has.
    """
    left = [holder for holder in holders if holder.has != NOTHING]
    while left:
        taken = total(holder.has for holder in left)
        stuck = [holder for holder in left if not need(holder).fits_beside(taken, holder.limits)]
        if len(stuck) == len(left):
            break
        left = stuck
    return left


def _will_want(holder: Holder) -> Amount:
    """Return what it will want beside what it has, but not more than its limits."""
    wants = holder.peak.minus(holder.has).or_more(holder.waits_for)
    return wants.at_most(holder.limits.minus(holder.has))
