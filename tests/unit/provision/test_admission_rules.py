"""Whatever is asked for, in whatever order: nobody gets too much, and nobody waits for ever."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import pytest_kvm as kvm
from pytest_kvm.provision.admission_rules import (
    NOTHING,
    USUAL,
    Amount,
    Case,
    Grant,
    Holder,
    Wait,
    is_safe,
    total,
)

SMALL = Amount(memory=512, vcpus=1, guests=1)
NO_LIMITS = Amount(math.inf, math.inf, math.inf)


def guests(number):
    return Amount(guests=number)


def grant(amount, *, is_leaving=False, is_wide=True):
    return Grant("web", amount, is_leaving=is_leaving, is_wide=is_wide, test="test_x", pids=())


def holder(*has, most=NO_LIMITS, peak=NOTHING, waits=(), pid=1):
    return Holder(
        pid=pid,
        test="test_x",
        limits=most,
        peak=peak,
        grants=tuple(map(grant, has)),
        waits=tuple(waits),
    )


def case_of(amount, *, me=None, others=(), ticket=99, memory_left=math.inf, is_wide=True):
    return Case(
        me=me or holder(), wish=Wait(ticket, amount), is_wide=is_wide, others=others, memory_left=memory_left
    )


def decide(amount, **given):
    return tuple(case_of(amount, **given).decide())


def test_what_is_assumed_of_an_unknown_guest_is_what_a_spec_without_fields_takes():
    assert Amount.of(kvm.GuestSpec()) == USUAL


def test_a_part_of_a_mib_counts_whole():
    assert Amount.of(kvm.GuestSpec(memory="65537KiB", vcpus=3)) == Amount(65, 3, 1)


def test_a_holder_can_be_written_down():
    one = replace(
        holder(SMALL, most=Amount(4096, math.inf, 2), peak=SMALL, waits=[Wait(3, SMALL)]),
        grants=(Grant("web", SMALL, is_leaving=True, is_wide=False, test="test_x", pids=(4711, 4712)),),
    )
    assert Holder.from_json(json.loads(json.dumps(one.to_json()))) == one


@pytest.mark.parametrize(
    ("amount", "most", "fits"),
    [
        (SMALL, Amount(1024, 2, 2), True),
        (SMALL, Amount(1023, 2, 2), False),
        (SMALL, Amount(1024, 1, 2), False),
        (SMALL, Amount(1024, 2, 1), False),
        (guests(1), Amount(0, 0, 2), True),
    ],
)
def test_what_is_asked_for_has_to_fit_beside_what_is_taken(amount, most, fits):
    others = [holder(SMALL)]
    assert (decide(amount, me=holder(most=most), others=others)[0] == "yes") == fits


def test_each_run_keeps_its_own_limits_for_the_guests_of_all():
    busy = [holder(guests(1), guests(1), most=guests(9))]
    assert decide(guests(1), me=holder(most=guests(2)), others=busy) == ("later", "limit")
    assert decide(guests(1), me=holder(most=guests(3)), others=busy) == ("yes", "")


def test_memory_that_others_use_cannot_be_had():
    assert decide(SMALL, memory_left=511) == ("later", "memory")
    assert decide(SMALL, memory_left=512) == ("yes", "")


def test_what_a_process_has_itself_is_not_given_back_while_it_waits():
    me = holder(guests(2), most=guests(3))
    assert decide(guests(2), me=me) == ("never", "own")
    assert decide(guests(1), me=replace(me, waits=(Wait(1, guests(1)),))) == ("never", "own")


def test_a_spare_clone_is_in_the_way_only_until_it_is_removed():
    me = replace(holder(most=guests(1)), grants=(grant(guests(1), is_leaving=True),))
    assert decide(guests(1), me=me) == ("later", "limit")
    assert decide(guests(1), me=replace(me, grants=())) == ("yes", "")


# ---------------------------------------------------------------- order


def test_a_process_that_has_nothing_keeps_to_the_order():
    first = holder(waits=[Wait(1, guests(3))], most=guests(3))
    busy = holder(guests(1))
    assert decide(guests(1), me=holder(most=guests(3)), others=[busy, first]) == ("later", "turn")
    assert decide(guests(1), me=holder(most=guests(3)), others=[busy]) == ("yes", "")


def test_a_process_that_has_guests_goes_before_those_that_may_wait_for_them():
    first = holder(waits=[Wait(1, guests(3))], most=guests(3))
    assert decide(guests(1), me=holder(guests(1), most=guests(3)), others=[first]) == ("yes", "")


def test_a_process_with_lower_limits_does_not_hold_up_the_rest():
    strict = holder(waits=[Wait(1, guests(1))], most=guests(1))
    busy = holder(guests(1))
    assert decide(guests(1), me=holder(most=guests(4)), others=[busy, strict]) == ("yes", "")


# ---------------------------------------------------------------- deadlocks


def test_the_last_place_is_kept_for_those_who_will_want_it():
    """Two workers, each with a guest of its module and one of its test to come, and room for two."""
    other = holder(guests(1), most=guests(2), peak=guests(2))
    me = holder(most=guests(2), peak=guests(2))
    assert decide(guests(1), me=me, others=[other]) == ("later", "need")
    assert decide(guests(1), me=replace(me, limits=guests(3)), others=[other]) == ("yes", "")


def test_it_is_kept_as_well_where_only_memory_is_short():
    """The limits would leave room for three guests, but other programs have the memory."""
    other = holder(SMALL, most=NO_LIMITS, peak=SMALL.plus(SMALL))
    me = holder(peak=SMALL.plus(SMALL))
    assert decide(SMALL, me=me, others=[other], memory_left=512) == ("later", "need")
    assert decide(SMALL, me=me, others=[other], memory_left=1024) == ("yes", "")


def test_of_two_that_wait_for_each_other_the_latest_is_told():
    other = holder(guests(1), most=guests(2), waits=[Wait(1, guests(1))])
    me = holder(guests(1), most=guests(2))
    assert decide(guests(1), me=me, others=[other], ticket=2) == ("never", "deadlock")
    later = replace(other, waits=(Wait(3, guests(1)),))
    assert decide(guests(1), me=me, others=[later], ticket=2) == ("later", "limit")


def test_a_process_at_work_may_still_give_back_what_it_has():
    at_work = holder(guests(1), most=guests(2))
    me = holder(guests(1), most=guests(2))
    assert decide(guests(1), me=me, others=[at_work]) == ("later", "limit")


amounts = st.builds(Amount, st.integers(0, 4), st.integers(0, 4), st.integers(1, 3))
limits = st.builds(Amount, st.integers(4, 9), st.integers(4, 9), st.integers(3, 6))


steps = st.tuples(amounts, st.booleans())


@st.composite
def worlds(draw):
    """Return for each process its limits, and what it takes in turn: how much, and whether it keeps that.

    What is not kept is the guests of one test, which are gone before it takes the next.
    """
    shared = draw(limits)
    plans = []
    for _ in range(draw(st.integers(1, 5))):
        most = draw(st.sampled_from([shared, shared, draw(limits)]))
        plan = draw(st.lists(steps, min_size=1, max_size=4))
        while not peak_of(plan).fits_beside(NOTHING, most):
            plan.pop()
        plans.append((most, plan))
    return plans


def peak_of(plan):
    """Return the most that a plan takes at a time, as if all that is kept were there from the beginning."""
    peak = kept = total(amount for amount, is_wide in plan if is_wide)
    for amount, is_wide in plan:
        if not is_wide:
            peak = peak.or_more(kept.plus(amount))
    return peak


class Play:
    """Processes that follow their plans in any order."""

    def __init__(self, plans, *, foreseen):
        self.processes = {
            pid: holder(most=most, peak=peak_of(plan) if foreseen else NOTHING, pid=pid)
            for pid, (most, plan) in enumerate(plans)
        }
        self.left = {pid: list(plan) for pid, (_, plan) in enumerate(plans)}
        self.refused = []
        """Those that were told that waiting is in vain."""

    def run(self, random):
        """Play until all are done."""
        while self.left:
            before = self.state()
            for pid in random.sample(sorted(self.left), len(self.left)):
                if random.random() > 0.3 or before == self.state():  # else it is slow
                    self.move(pid)
            assert before != self.state(), f"nobody can go on: {self.processes}"
        return self.refused

    def state(self):
        return dict(self.processes), {pid: len(plan) for pid, plan in self.left.items()}

    def move(self, pid):
        if not self.left[pid]:
            del self.left[pid], self.processes[pid]
            return
        me = self.processes[pid]
        kept = tuple(grant for grant in me.grants if grant.is_wide)
        if kept != me.grants:
            self.processes[pid] = replace(me, grants=kept)
            return
        everybody = self.processes.values()
        others = [each for each in everybody if each.pid != pid]
        tickets = [wait.ticket for each in everybody for wait in each.waits]
        amount, is_wide = self.left[pid][0]
        wish = me.waits[0] if me.waits else Wait(max(tickets, default=0) + 1, amount)
        me = replace(me, waits=())
        answer, reason = Case(me=me, wish=wish, is_wide=is_wide, others=others).decide()
        if answer == "yes":
            assert wish.amount.fits_beside(total(each.has for each in everybody), me.limits)
            self.left[pid].pop(0)
            me = me.with_grant(wish.amount, is_wide=is_wide)
        elif answer == "later":
            me = replace(me, waits=(wish,))
        else:
            assert reason == "deadlock"
            self.refused.append(pid)
            self.left[pid] = []
        self.processes[pid] = me


@settings(max_examples=400)
@given(worlds(), st.randoms(use_true_random=False))
def test_a_process_that_says_what_it_will_want_gets_it_in_the_end(plans, random):
    assert Play(plans, foreseen=True).run(random) == []


@settings(max_examples=400)
@given(worlds(), st.randoms(use_true_random=False))
def test_one_that_does_not_say_so_is_refused_rather_than_kept_waiting(plans, random):
    Play(plans, foreseen=False).run(random)


class InTurn:
    """Chance that does nothing by chance."""

    def random(self):
        return 1.0

    def sample(self, of, count):
        return of


def test_without_foresight_somebody_is_refused():
    """So the walks above can find something."""
    plans = [(guests(2), [(guests(1), True), (guests(1), True)])] * 2
    assert Play(plans, foreseen=False).run(InTurn()) == [1]
    assert Play(plans, foreseen=True).run(InTurn()) == []


def test_guests_of_one_test_keep_nobody_from_a_place_that_is_free():
    """They are given back before the next test asks, whatever that will want."""
    other = replace(holder(most=guests(2), peak=guests(2)), grants=(grant(guests(1), is_wide=False),))
    me = holder(most=guests(2), peak=guests(2))
    assert decide(guests(1), me=me, others=[other]) == ("yes", "")
    assert decide(guests(1), me=me, others=[holder(guests(1), most=guests(2), peak=guests(2))]) == (
        "later",
        "need",
    )


def test_an_earlier_one_is_not_starved_by_those_that_have_a_guest_of_their_module():
    """Two workers with a guest of their module each and one for each test; a third waits for two."""
    module, test = grant(guests(1)), grant(guests(1), is_wide=False)
    third = holder(most=guests(4), waits=[Wait(1, guests(2))])
    busy = replace(holder(most=guests(4), peak=guests(2)), grants=(module, test))
    me = replace(holder(most=guests(4), peak=guests(2)), grants=(module,))
    assert decide(guests(1), me=me, others=[busy, third]) == ("later", "turn")
    assert decide(guests(1), me=me, others=[busy]) == ("yes", "")


# ---------------------------------------------------------------- memory that others have


@pytest.mark.parametrize(
    ("others", "me", "in_vain"),
    [
        ([], holder(), True),
        ([], holder(SMALL), True),
        ([holder(SMALL)], holder(), False),
        # Not enough of it.
        ([holder(Amount(100, 1, 1))], holder(), True),
        # It waits for memory as well.
        ([holder(SMALL, waits=[Wait(1, SMALL)])], holder(SMALL), True),
        # As above, but the other one is the later, and is told first.
        ([holder(SMALL, waits=[Wait(100, SMALL)])], holder(SMALL), False),
    ],
)
def test_memory_that_only_other_programs_can_give_back(others, me, in_vain):
    case = case_of(SMALL, me=me, others=others, memory_left=300)
    assert case.decide() == ("later", "memory")
    assert case.only_other_programs_can_help() == in_vain


def test_those_that_have_nothing_hold_nobody_up():
    assert is_safe([holder(waits=[Wait(1, guests(9))], most=guests(1))])
