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
    held = _all_in_words(case) or "no guest has any"
    match decision.reason:
        case "memory":
            return f"{_left(case)}; {held}"
        case "turn":
            first = case.who_goes_first()
            return f"{'another process' if first is None else _name(first)} has waited for longer; {held}"
        case "need":
            return f"what is left is kept for those who will want more; {held}"
        case "limit":
            taken = total(each.has_in_all for each in (case.me, *case.others))
            return f"at most {_first_exceeded(case.wish.amount, taken, limits)}; {held}"
        case "" | "own" | "deadlock":
            raise ValueError(f"{decision} is no reason to wait")
        case _:
            assert_never(decision.reason)


def refusal(decision: Decision, case: Case, *, wanted: str, limits: Limits) -> NoCapacity:
    """Return the error of a wish that no waiting would fulfil.

    Args:
        decision: Why it is refused.
        case: The wish.
        wanted: What is wanted, from :func:`guests_in_words`.
        limits: Those of this process.
    """
    if decision.reason == "deadlock":
        return NoCapacity(
            f"no room for {wanted}: this process and others have guests, and wait for each other's",
            details=_all_in_words(case).replace("; ", "\n"),
            resolution="have a test ask for all its guests together, by fixtures or with boot_all(); "
            f"or {_RAISE}",
        )
    me = case.me
    ceiling = _first_exceeded(case.wish.amount, me.has.plus(me.waits_for), limits)
    others = [f"has {guests_in_words(me.has)}"] if me.grants else []
    if me.waits:
        others.append(f"waits for {guests_in_words(me.waits_for)}")
    return NoCapacity(
        f"no room for {wanted} beside the other guests of this process: it {' and '.join(others)}, "
        f"and at most {ceiling} can be had",
        details=_list(me.grants),
        resolution=f"give guests of wider scopes a narrower one, or raise the limit with {ceiling.flag}",
    )


def too_late(seen: str) -> NoCapacity:
    """Return the error of a wait that has taken too long."""
    return NoCapacity(
        seen,
        resolution=f"end what has the room, {_RAISE}, or wait for longer with --kvm-admission-timeout",
    )


def not_enough_memory(wanted: str, case: Case) -> NoCapacity:
    """Return the error of a wish for memory that the guests of other processes cannot give back.

    Args:
        wanted: What is wanted, from :func:`guests_in_words`.
        case: The wish.
    """
    return NoCapacity(
        f"no room for {wanted}: {_left(case)}, and the guests of other processes do not have so much",
        details=_list(case.me.grants),
        resolution="end other programs, give the guests less memory, or say with --kvm-max-memory how much "
        "they may have whatever is left",
    )


def _left(case: Case) -> str:
    return f"{mib_in_words(max(case.memory_left, 0))} of this machine's memory are left for guests"


def _all_in_words(case: Case) -> str:
    busy = [holder for holder in case.others if holder.grants]
    told = [_held(holder, _name(holder)) for holder in busy[:_NAMED]]
    if rest := busy[_NAMED:]:
        amount = total(holder.has_in_all for holder in rest)
        told.append(f"{len(rest)} more processes have {guests_in_words(amount)}")
    if case.me.grants:
        told.append(_held(case.me, "this process"))
    return "; ".join(told)


def _held(holder: Holder, name: str) -> str:
    return f"{name} has {guests_in_words(holder.has_in_all)}"


def _name(holder: Holder) -> str:
    return f"pid {holder.pid} ({holder.test or 'between tests'})"


def _list(grants: Sequence[Grant]) -> str:
    return "\n".join(
        f"{each.name}: {mib_in_words(each.amount.memory)}, for {each.test}"
        for each in grants
        if not each.is_leaving
    )


def _first_exceeded(amount: Amount, taken: Amount, limits: Limits) -> Ceiling:
    both = zip(amount, taken, limits.ceilings, strict=True)
    return next(ceiling for wanted, has, ceiling in both if wanted > 0 and wanted + has > ceiling.most)
