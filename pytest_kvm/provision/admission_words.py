"""Words of admission: why a process has to wait for room, and why it gets none."""

from __future__ import annotations

from collections.abc import Sequence
from typing import assert_never

from pytest_kvm.errors import NoCapacity
from pytest_kvm.host.limits import Ceiling, Limits, mib_in_words
from pytest_kvm.provision.admission_rules import Amount, Case, Decision, Grant, Holder, total

_NAMED = 5
"""Processes that a message names one by one."""
_RAISE = "raise the limit with --kvm-max-memory, --kvm-max-vcpus or --kvm-max-guests"


def guests_in_words(amount: Amount) -> str:
    """Return ``"a guest of 512 MiB"`` or ``"2 guests of 1 GiB together"``."""
    if amount.guests <= 1:
        return f"a guest of {mib_in_words(amount.memory)}"
    return f"{amount.guests:.0f} guests of {mib_in_words(amount.memory)} together"


def why_later(decision: Decision, case: Case, *, limits: Limits) -> str:
    """Return what a wish waits for: how much there is, and who has it."""
    held = "; ".join(filter(None, [_others_in_words(case.others), _own_in_words(case.me)]))
    held = held or "no guest has any"
    match decision.reason:
        case "memory":
            left = mib_in_words(max(case.memory_left, 0))
            return f"{left} of this machine's memory are left for guests; {held}"
        case "turn":
            return f"{_name(_first_waiting(case.others))} has waited for longer; {held}"
        case "others' need":
            return f"what is left is kept for those who will want more; {held}"
        case "limit":
            return f"at most {_reached_limit(case, limits)}; {held}"
        case "" | "own" | "deadlock":
            raise ValueError(f"{decision} is no reason to wait")
        case _:
            assert_never(decision.reason)


def refusal(decision: Decision, case: Case, *, limits: Limits) -> NoCapacity:
    """Return the error of a wish that no waiting would fulfil."""
    wanted = guests_in_words(case.wish.amount)
    if decision.reason == "deadlock":
        return NoCapacity(
            f"no room for {wanted}: this process and others have guests, and wait for each other's",
            details="\n".join(filter(None, [_own_in_words(case.me), _others_in_words(case.others)])),
            resolution="have a test ask for all its guests together, by fixtures or with boot_all(); "
            f"or {_RAISE}",
        )
    has = case.me.has.plus(case.me.waits_for)
    ceiling = _first_exceeded(case.wish.amount, has, limits)
    return NoCapacity(
        f"no room for {wanted} beside the guests of this process: it has "
        f"{guests_in_words(has).removeprefix('a guest of ')}, and at most {ceiling} can be had",
        details=_list(case.me.grants),
        resolution=f"give guests of wider scopes a narrower one, or raise the limit with {ceiling.flag}",
    )


def too_late(seen: str) -> NoCapacity:
    """Return the error of a wait that has taken too long."""
    return NoCapacity(
        seen,
        resolution=f"end what has the room, {_RAISE}, or wait for longer with --kvm-admission-timeout",
    )


def not_enough_memory(case: Case) -> NoCapacity:
    """Return the error of a wish for memory that no other process's guest has, so that none gives it back."""
    return NoCapacity(
        f"no room for {guests_in_words(case.wish.amount)}: {mib_in_words(max(case.memory_left, 0))} of this "
        "machine's memory are left for guests, and no guest of another process has any",
        resolution="end other programs, give the guests less memory, or say with --kvm-max-memory how much "
        "they may have whatever is left",
    )


def _others_in_words(holders: Sequence[Holder]) -> str:
    busy = [holder for holder in holders if holder.grants]
    told = [_held(holder, _name(holder)) for holder in busy[:_NAMED]]
    if rest := busy[_NAMED:]:
        amount = total(holder.has_in_all for holder in rest)
        told.append(f"{len(rest)} more processes have {guests_in_words(amount)}")
    return "; ".join(told)


def _own_in_words(me: Holder) -> str:
    return _held(me, "this process") if me.grants else ""


def _held(holder: Holder, name: str) -> str:
    return f"{name} has {guests_in_words(holder.has_in_all)}"


def _name(holder: Holder) -> str:
    return f"pid {holder.pid} ({holder.test or 'between tests'})"


def _list(grants: Sequence[Grant]) -> str:
    return "\n".join(f"{each.name}: {mib_in_words(each.amount.memory)}, for {each.test}" for each in grants)


def _first_waiting(holders: Sequence[Holder]) -> Holder:
    return min((each for each in holders if each.waits), key=lambda each: each.waits[0].ticket)


def _reached_limit(case: Case, limits: Limits) -> Ceiling:
    taken = total(each.has_in_all for each in (case.me, *case.others))
    return _first_exceeded(case.wish.amount, taken, limits)


def _first_exceeded(amount: Amount, taken: Amount, limits: Limits) -> Ceiling:
    both = zip(amount, taken, limits.ceilings, strict=True)
    return next(ceiling for wanted, has, ceiling in both if wanted > 0 and wanted + has > ceiling.most)
