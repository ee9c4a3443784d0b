"""Faults of segments on a real switch, between cards that are sockets; their guests have no machine."""

from __future__ import annotations

import os
import signal
import threading

import pytest

import pytest_kvm as kvm
from pytest_kvm.errors import DomainFailed, SpecError, SwitchFailed
from pytest_kvm.handles.guest import Guest
from pytest_kvm.provision.segment_faults import SegmentFaults
from pytest_kvm.provision.segments import Segments
from pytest_kvm.provision.undo_log import Owner
from tests.unit.provision.joined_cards import SPEC, JoinedGuests
from tests.unit.provision.started_machines import future_of
from tests.unit.switch.conftest import frame, mac


@pytest.fixture
def three(guests):
    return [guests.join(name) for name in "abc"]


# ------------------------------------------------------------ cuts


def test_a_partition_until_it_is_undone(guests, three):
    a, b, c = three
    with guests.lan.partition({a}, [b, c.nics[0]]) as fault:
        assert guests.lan.faults == (fault,)
        assert not guests.reaches("a", "b")
        assert guests.reaches("b", "c")
    assert guests.reaches("a", "b")
    assert guests.lan.faults == ()
    assert repr(fault) == "<Fault lan: partition a | b, c (undone)>"
    fault.undo()


def test_who_is_in_no_group_is_alone_and_who_is_isolated_leaves_the_others_together(guests, three):
    a, b, _ = three
    with guests.lan.partition([a, b]):
        assert guests.reaches("a", "b")
        assert not guests.reaches("a", "c")
    with guests.lan.isolate(a):
        assert not guests.reaches("a", "b")
        guests.join("late")
        assert guests.reaches("b", "late")
        assert not guests.reaches("late", "a")
    for members in ((a, b), ([a, b],)):
        with guests.lan.isolate(*members):
            assert not guests.reaches("a", "b")


def test_heal_ends_what_the_test_has_cut_and_that_of_a_fixture_for_the_test(guests, coordinator, three):
    a, b, c = three
    fixture, test = Owner("fixture"), Owner("test")
    with coordinator.at_work(fixture):
        guests.lan.partition({a}, {b, c})
    with coordinator.at_work(test):
        own = guests.lan.isolate(b)
        guests.lan.heal()
        assert guests.reaches("a", "b")
        assert "(undone)" in repr(own)
        guests.lan.heal()
    test.end()
    assert not guests.reaches("a", "b")
    assert guests.reaches("b", "c")
    fixture.end()
    assert guests.reaches("a", "b")


def test_a_cut_that_ends_while_it_is_healed_stays_ended(guests, coordinator, three):
    a, *others = three
    with coordinator.at_work(fixture := Owner("fixture")):
        guests.lan.partition({a}, others)
    with coordinator.at_work(test := Owner("test")):
        guests.lan.heal()
        fixture.end()
    test.end()
    assert guests.reaches("a", "b")


# ------------------------------------------------------------ cables


def test_a_cable_that_is_pulled_out_and_plugged_in(guests, three):
    a, *_ = three
    with guests.lan.unplug(a):
        assert not guests.reaches("a", "b")
        assert not guests.reaches("b", "a")
        assert guests.lan.counters["a"]["out"]["dropped"]["unplugged"] == 1
    assert guests.reaches("a", "b")
    assert guests.domains["a"].done == ["qmp set_link", "qmp set_link"]


def test_of_several_faults_of_a_cable_the_newest_counts(guests):
    a, _ = guests.join("a"), guests.join("b")
    unplugged = guests.lan.unplug(a)
    plugged = guests.lan.plug(a)
    assert guests.reaches("a", "b")
    again = guests.lan.unplug(a)
    plugged.undo()
    assert not guests.reaches("a", "b")
    again.undo()
    assert not guests.reaches("a", "b")
    unplugged.undo()
    assert guests.reaches("a", "b")


def test_a_card_whose_cable_was_never_plugged_in(guests):
    a, _ = guests.join("a", "up", "down"), guests.join("b")
    assert not guests.reaches("a.2", "b")
    with guests.lan.plug(a):
        assert guests.reaches("a.2", "b")
    assert not guests.reaches("a.2", "b")
    assert guests.reaches("a", "b")


def test_a_guest_that_is_off_is_told_nothing(guests):
    a, _ = guests.join("a"), guests.join("b")
    guests.domains["a"].end("powered off")
    with guests.lan.unplug(a):
        assert not guests.reaches("a", "b")
    assert guests.domains["a"].done == []


def test_a_guest_that_ends_meanwhile_is_no_error(guests, monkeypatch):
    a, _ = guests.join("a"), guests.join("b")
    domain = guests.domains["a"]

    def die(command, arguments=None):
        domain.end("killed")
        raise DomainFailed("a has ended")

    monkeypatch.setattr(domain, "qmp", die)
    with guests.lan.unplug(a):
        assert not guests.reaches("a", "b")
    assert guests.reaches("a", "b")


def test_a_monitor_that_refuses_leaves_the_cable_as_it_was(guests, monkeypatch):
    a, _ = guests.join("a"), guests.join("b")
    answers = guests.domains["a"]._qmp
    monkeypatch.setattr(guests.domains["a"], "_qmp", {})
    with pytest.raises(DomainFailed, match="refused set_link"):
        guests.lan.unplug(a)
    monkeypatch.setattr(guests.domains["a"], "_qmp", answers)
    assert guests.lan.faults == ()
    assert guests.reaches("a", "b")


# ------------------------------------------------------------ bad lines


@pytest.mark.parametrize(
    ("place", "lost"),
    [
        ({}, {("a", "c"), ("c", "a"), ("b", "c"), ("c", "b")}),
        ({"link": "a"}, {("a", "c"), ("c", "a")}),
        ({"link": "a", "direction": "out"}, {("a", "c")}),
        ({"link": "a", "direction": "in"}, {("c", "a")}),
    ],
)
def test_where_a_fault_is(guests, three, place, lost):
    if "link" in place:
        place["link"] = three["abc".index(place["link"])]
    with guests.lan.loss(1.0, **place):
        found = {way for way in (("a", "c"), ("c", "a"), ("b", "c"), ("c", "b")) if not guests.reaches(*way)}
    assert found == lost
    assert guests.reaches("a", "c")


def test_all_kinds_are_taken_and_told(guests, three):
    lan, (a, *_) = guests.lan, three
    lan.delay(0.1, jitter=0.05, link=a)
    lan.jitter(0.02)
    lan.duplicate(0.25)
    lan.reorder(0.5, hold=0.5)
    lan.corrupt(1)
    lan.rate("1.5Mbit", queue="1MiB", link=a.nics[0], direction="out")
    assert [str(fault) for fault in lan.faults] == [
        "lan: delay(0.1, jitter=0.05) on a out, a in",
        "lan: jitter(0.02)",
        "lan: duplicate(0.25)",
        "lan: reorder(0.5, hold=0.5)",
        "lan: corrupt(1)",
        "lan: rate('1.5Mbit', queue='1MiB') on a out",
    ]
    assert [fault.is_random for fault in lan.faults] == [True, True, True, True, True, False]


def test_a_predicate_drops_frames(guests, three):
    a, *_ = three

    def from_a(packet):
        return packet.src_mac == "52:54:00:00:00:00"

    with guests.lan.drop(from_a) as fault:
        assert str(fault) == "lan: drop(from_a)"
        assert not guests.reaches("a", "b")
        assert guests.reaches("b", "a")
    with guests.lan.drop(from_a, link=a, direction="in"):
        assert guests.reaches("a", "b")


def test_a_filter_expression_drops_frames(guests, three):
    _, b, _ = three
    with guests.lan.drop("ether src 52:54:00:00:00:00", link=b) as fault:
        assert str(fault) == "lan: drop('ether src 52:54:00:00:00:00') on b out, b in"
        assert not guests.reaches("a", "b")
        assert guests.reaches("a", "c")
        assert guests.reaches("b", "a")
    assert guests.lan.counters["b"]["in"]["dropped"] == {"drop": 2}
    assert guests.reaches("a", "b")


@pytest.mark.parametrize("error", [None, AssertionError("the test's own")])
def test_what_a_predicate_raises_is_told_when_the_fault_is_undone(guests, three, error):
    def wrong(packet):
        return packet.sport > 1024

    def block():
        with guests.lan.drop(wrong):
            assert guests.reaches("a", "b")
            if error is not None:
                raise error

    with pytest.raises(TypeError if error is None else AssertionError) as caught:
        block()
    notes = getattr(caught.value, "__notes__", [])
    assert len(notes) == (error is not None)
    assert all("lan: drop(wrong) (undone): TypeError" in note for note in notes)


def test_a_predicate_may_look_at_the_segment(guests, three):
    with guests.lan.drop(lambda packet: guests.lan.counters["a"]["out"]["frames"] > 1):
        assert guests.reaches("a", "b")
        assert not guests.reaches("a", "b")


def test_a_predicate_that_has_raised_drops_nothing_any_more(guests, three):
    """It is on both directions of the link, and fails in one of them."""
    a, *_ = three

    def wrong(packet):
        if packet.src_mac == "52:54:00:00:00:00":
            raise LookupError
        return True

    fault = guests.lan.drop(wrong, link=a)
    assert not guests.reaches("b", "a")
    assert guests.reaches("a", "b")
    assert guests.reaches("b", "a")
    with pytest.raises(LookupError):
        fault.undo()


def test_a_predicate_that_never_answers_holds_up_neither_orders_nor_the_end(guests, three, switch):
    answered = threading.Event()
    with guests.lan.drop(lambda packet: answered.wait()):
        assert not guests.reaches("a", "b")
        assert guests.lan.counters["a"]["out"]["frames"] == 1
    switch.close()
    answered.set()


def lost_of(guests, count=200):
    """Send frames from a to b; return the numbers of those that are lost."""
    for card in guests.cards.values():
        card.drain(timeout=0.05)
    for number in range(count):
        guests.cards["a"].send(frame(b"\xff" * 6, mac(0), b"%06d" % number))
    return set(range(count)) - {int(each[14:20]) for each in guests.cards["b"].drain(timeout=0.3)}


def test_a_seed_repeats_the_chances_of_a_test_that_runs_alone(
    switch, resources, coordinator, captures, tmp_path
):
    def run(name, seed, *before):
        folder = tmp_path / name
        folder.mkdir()
        faults = SegmentFaults(coordinator, seed=seed)
        segments = Segments(switch, resources, faults=faults, captures=captures, before_removal=str)
        guests = JoinedGuests(segments, switch, folder)
        for each in "ab":
            guests.join(each)
        for owner in before:
            with coordinator.at_work(owner), guests.lan.loss(0.3):
                lost_of(guests)
        with coordinator.at_work(Owner("test_a")):
            with guests.lan.loss(0.3):
                first = lost_of(guests)
            with guests.lan.loss(0.3):
                second = lost_of(guests)
        guests.close()
        guests.segments.remove(guests.lan)
        return first, second

    alone, after = run("1", "x"), run("2", "x", Owner("test_b"), Owner("test_c"))
    assert alone == after
    assert alone[0] != alone[1]
    assert run("3", "y") != alone


def test_a_seed_is_chosen_if_none_is_given(coordinator):
    one, other = SegmentFaults(coordinator), SegmentFaults(coordinator)
    assert one.seed != other.seed


# ------------------------------------------------------------ owners and ends


def test_faults_end_with_their_owner_the_newest_first(guests, coordinator, three, faults):
    a, *_ = three
    fixture, test = Owner("fixture"), Owner("test")
    with coordinator.at_work(fixture):
        kept = guests.lan.isolate(a)
    with coordinator.at_work(test):
        guests.lan.unplug(a)
        with guests.lan.loss(0.5) as done:
            pass
        plugged = guests.lan.plug(a)
        assert faults.at_work() == [kept, *guests.lan.faults[1:2], done, plugged]
    test.end()
    assert guests.lan.faults == (kept,)
    assert guests.domains["a"].done == ["qmp set_link"] * 4
    fixture.end()
    assert guests.lan.faults == ()
    assert faults.at_work() == []


def test_the_end_of_a_test_tells_what_a_predicate_raised_and_undoes_the_rest(guests, coordinator, three):
    a, *_ = three
    with coordinator.at_work(test := Owner("test")):
        guests.lan.isolate(a)
        guests.lan.drop(lambda packet: packet.sport > 1024)
        assert guests.reaches("b", "c")
    with pytest.raises(TypeError) as caught:
        test.end()
    assert caught.value.__notes__ == ["by lan: drop(<lambda>) (undone)"]
    assert guests.reaches("a", "b")


def test_a_segment_that_is_removed_tells_what_a_predicate_raised(guests, coordinator, three, switch):
    a, *_ = three
    with coordinator.at_work(test := Owner("test")):
        guests.lan.unplug(a)
        guests.lan.drop(lambda packet: packet.sport > 1024)
        assert guests.reaches("b", "c")
        with pytest.raises(TypeError):
            guests.segments.remove(guests.lan)
    assert guests.domains["a"].done == ["qmp set_link"] * 2
    with pytest.raises(SwitchFailed, match="lan"):
        guests.lan.backend.counters()
    test.end()


def test_a_cut_is_made_again_without_the_guests_that_were_removed(guests, coordinator, three):
    a, b, c = three
    with coordinator.at_work(Owner("fixture")):
        guests.lan.partition({a}, {b}, {c})
    with coordinator.at_work(test := Owner("test")):
        guests.lan.heal()
        assert guests.reaches("b", "c")
        guests.segments.leave(a.nics)
    test.end()
    assert not guests.reaches("b", "c")


def test_the_end_of_a_fault_that_another_owner_undoes_changes_guests_for_that_owner(
    guests, coordinator, three, monkeypatch
):
    told = []
    monkeypatch.setattr(coordinator, "before_fault", lambda guests: told.append(coordinator.owner))
    fixture, test = Owner("fixture"), Owner("test")
    with coordinator.at_work(fixture):
        fault, other = guests.lan.delay(0.1), guests.lan.delay(0.2)
        own = guests.lan.delay(0.3)
        own.undo()
    with coordinator.at_work(test):
        fault.undo()
        fixture.end()
    assert told == [fixture, fixture, fixture, test]
    assert "(undone)" in str(other)


def test_an_owner_that_has_ended_begins_no_fault(guests, coordinator):
    with coordinator.at_work(test := Owner("test_a")):
        test.end()
        with pytest.raises(SpecError, match="lan: test_a has ended, and can begin no fault any more"):
            guests.lan.delay(0.1)


def test_threads_begin_and_undo_faults_of_one_test(guests, coordinator, three):
    a, b, _ = three
    failures = []

    def work():
        try:
            for _ in range(20):
                with guests.lan.unplug(a), guests.lan.isolate(b), guests.lan.loss(0.1):
                    pass
        except Exception as failure:  # noqa: BLE001 - the test's own thread looks at it
            failures.append(failure)

    with coordinator.at_work(test := Owner("test")):
        threads = [threading.Thread(target=work) for _ in range(3)]
        for thread in threads:
            thread.start()
        while any(thread.is_alive() for thread in threads):
            assert len(guests.lan.faults) <= 9
        assert failures == []
    test.end()
    assert guests.reaches("a", "b")


def test_guests_and_segments_that_are_removed_take_their_faults_along(guests, coordinator, three):
    a, b, _ = three
    with coordinator.at_work(test := Owner("test")):
        guests.lan.unplug(a)
        guests.lan.loss(0.5, link=a)
        guests.lan.partition({a}, {b})
        guests.segments.leave(a.nics)
        guests.lan.heal()
        fault = guests.lan.delay(1)
        guests.segments.remove(guests.lan)
        fault.undo()
        for verb in (lambda: guests.lan.delay(1), guests.lan.heal, lambda: guests.lan.isolate(b)):
            with pytest.raises(SpecError, match="the segment lan was removed"):
                verb()
    test.end()


def test_the_end_of_the_switch_is_told_by_verbs_and_not_at_the_end_of_a_test(
    guests, coordinator, three, switch
):
    a, *_ = three
    with coordinator.at_work(test := Owner("test")):
        guests.lan.isolate(a)
        fault = guests.lan.unplug(a)
        os.kill(switch.get().pid, signal.SIGKILL)
        with pytest.raises(SwitchFailed):
            fault.undo()
        with pytest.raises(SwitchFailed):
            guests.lan.delay(1)
    test.end()


# ------------------------------------------------------------ mistakes


@pytest.mark.parametrize(
    ("mistake", "message"),
    [
        (lambda lan, a, other: lan.loss(2), "lan.loss: 2 is not a probability"),
        (lambda lan, a, other: lan.corrupt(-0.1), "lan.corrupt: -0.1 is not a probability"),
        (lambda lan, a, other: lan.duplicate(float("nan")), "nan is not a probability"),
        (lambda lan, a, other: lan.loss("10%"), "lan.loss: '10%' is not a probability"),
        (lambda lan, a, other: lan.delay(-1), "lan.delay: -1 is not a number of seconds from 0 to 86400"),
        (lambda lan, a, other: lan.delay(1e10), "lan.delay: 10000000000.0 is not a number of seconds"),
        (lambda lan, a, other: lan.delay(10**400), "is not a number of seconds"),
        (lambda lan, a, other: lan.delay("1s"), "lan.delay: '1s' is not a number of seconds"),
        (lambda lan, a, other: lan.delay(1, jitter=float("inf")), "lan.delay: jitter: inf is not"),
        (lambda lan, a, other: lan.reorder(0.1, hold=None), "lan.reorder: hold: None is not"),
        (lambda lan, a, other: lan.rate(0), "lan.rate: 0 is not a bandwidth from 1bit"),
        (lambda lan, a, other: lan.rate("10 MB/s"), "lan.rate: '10 MB/s' is not a bandwidth"),
        (lambda lan, a, other: lan.rate("1Mbit", queue=5), "lan.rate: queue: 5 is not a size"),
        (lambda lan, a, other: lan.drop("tcp and"), "the filter expression 'tcp and': "),
        (
            lambda lan, a, other: lan.drop(5432),
            "lan.drop: 5432 is neither a filter expression",
        ),
        (lambda lan, a, other: lan.loss(1, direction="in"), "direction='in' without a link"),
        (lambda lan, a, other: lan.loss(1, link=a, direction="up"), "'up' is not one of 'out', 'in'"),
        (lambda lan, a, other: lan.loss(1, link=other), "other has no card on the segment lan; on it: a"),
        (lambda lan, a, other: lan.loss(1, link="a"), "'a' has no card on the segment lan"),
        (lambda lan, a, other: lan.partition(), "lan.partition: no group"),
        (lambda lan, a, other: lan.partition({a}, [a]), "lan.partition: a is named twice"),
        (lambda lan, a, other: lan.partition([a, a.nics[0]]), "lan.partition: a is named twice"),
        (lambda lan, a, other: lan.partition(a, other), "other has no card on the segment lan"),
        (lambda lan, a, other: lan.partition("abc"), "'abc' has no card on the segment lan"),
        (lambda lan, a, other: lan.isolate(), "lan.isolate: no guest"),
        (lambda lan, a, other: lan.isolate([]), "lan.isolate: no guest"),
        (lambda lan, a, other: lan.unplug(), "lan.unplug: no guest"),
        (lambda lan, a, other: lan.plug(other.nics[0]), "has no card on the segment lan"),
    ],
)
def test_mistakes(guests, mistake, message):
    a = guests.join("a")
    other = Guest("other", future_of(None))
    wan = guests.segments.make("wan", SPEC)
    other.nics = guests.segments.join(other, kvm.GuestSpec(nics=[kvm.Nic(wan)]), declared_name="other")
    with pytest.raises(SpecError) as caught:
        mistake(guests.lan, a, other)
    assert message in str(caught.value)
    assert guests.lan.faults == ()
