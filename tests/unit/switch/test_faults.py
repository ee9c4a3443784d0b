from __future__ import annotations

import math
import threading
import time
from collections import Counter
from functools import partial
from random import Random

import psutil
import pytest

from pytest_kvm.switch.faults import Corrupt, Delay, Duplicate, Faults, Loss, Rate, Reorder
from pytest_kvm.waiting import NotYet, wait_until
from tests.unit.switch.conftest import EVERYBODY, frame, mac

FRAMES = 10_000


def numbered(count, size=60):
    return [frame(mac(2), mac(1), b"%06d" % n + bytes(size - 20)) for n in range(count)]


def within_chance(seen, probability, tried=FRAMES):
    """Say whether it lies in the binomial distribution's 99 % interval."""
    return abs(seen - tried * probability) <= 2.576 * math.sqrt(tried * probability * (1 - probability))


# ------------------------------------------------------------ what they compute


@pytest.mark.parametrize("probability", [0.01, 0.1, 0.5])
def test_loss_and_duplicates_are_as_likely_as_was_asked(probability):
    for seed in range(5):
        loss = Loss(probability=probability, chance=Random(seed))
        duplicate = Duplicate(probability=probability, chance=Random(seed))
        passed = sum(len(list(loss.through(b"x" * 60, 0.0))) for _ in range(FRAMES))
        doubled = sum(len(list(duplicate.through(b"x" * 60, 0.0))) for _ in range(FRAMES)) - FRAMES
        assert within_chance(FRAMES - passed, probability)
        assert within_chance(doubled, probability)


def test_the_same_seed_has_the_same_effect():
    def fate(seed):
        loss = Loss(probability=0.3, chance=Random(seed))
        return [bool(list(loss.through(b"", 0.0))) for _ in range(100)]

    assert fate("lan/1") == fate("lan/1") != fate("lan/2")


def test_corruption_flips_one_bit_behind_the_header():
    corrupt = Corrupt(probability=1.0, chance=Random(1))
    before = frame(mac(2), mac(1), bytes(100))
    for _ in range(100):
        [(after, _)] = corrupt.through(before, 0.0)
        assert after[:14] == before[:14]
        assert sum((a ^ b).bit_count() for a, b in zip(after, before, strict=True)) == 1
    assert list(corrupt.through(before[:14], 0.0)) == [(before[:14], 0.0)]


@pytest.mark.parametrize("size", [60, 1514, 9014])
def test_rate_spaces_frames_and_its_queue_has_a_limit(size):
    rate = Rate(bits_per_second=10e6, queue=50_000, chance=Random(1))
    left = [each for _ in range(FRAMES) for each in rate.through(bytes(size), 1.0)]
    assert (len(left) - 2) * size <= 50_000 <= len(left) * size
    seconds = left[-1][1] - 1.0
    assert len(left) * size * 8 / seconds == pytest.approx(10e6, rel=0.001)
    [(_, later)] = rate.through(bytes(size), 5.0)
    assert later == pytest.approx(5.0 + size * 8 / 10e6), "an empty queue costs the frame's own time only"


def test_jitter_varies_delays_and_keeps_order():
    delay = Delay(seconds=0.05, jitter=0.01, chance=Random(1))
    moments = [next(delay.through(b"", n / 1000))[1] for n in range(1000)]
    assert moments == sorted(moments)
    late = [moment - n / 1000 for n, moment in enumerate(moments)]
    assert min(late) >= 0.04
    assert max(late) <= 0.061
    assert len({round(each, 4) for each in late}) > 50


def test_reordered_frames_are_held_back():
    reorder = Reorder(probability=0.25, hold=0.02, chance=Random(1))
    moments = [next(reorder.through(b"", 0.0))[1] for _ in range(FRAMES)]
    assert set(moments) == {0.0, 0.02}
    assert within_chance(moments.count(0.02), 0.25)


def test_faults_of_a_path_add_up_whichever_came_first():
    one, other = Faults(), Faults()
    faults = {
        "delay": Delay(seconds=1.0, jitter=0.0, chance=Random(1)),
        "rate": Rate(bits_per_second=80, queue=1000, chance=Random(1)),
    }
    for path, order in ((one, ("delay", "rate")), (other, ("rate", "delay"))):
        for number, kind in enumerate(order, start=1):
            path.add(number, faults[kind], kind=kind)
        assert path.through(bytes(10), 200.0, dropped=Counter())[0][1] > 200
    assert one._order == other._order
    one.remove(1)
    one.remove(2)
    assert one.is_clear


def test_each_lost_copy_is_counted_by_what_lost_it():
    faults, dropped = Faults(), Counter()
    faults.add(1, Duplicate(probability=1.0, chance=Random(1)), kind="duplicate")
    faults.add(2, Rate(bits_per_second=80, queue=15, chance=Random(1)), kind="rate")
    for _ in range(3):
        faults.through(bytes(10), 1.0, dropped=dropped)
    faults.add(3, Loss(probability=1.0, chance=Random(1)), kind="loss")
    assert faults.through(bytes(10), 1.0, dropped=dropped) == []
    assert dropped == {"rate": 4, "loss": 1}


# ------------------------------------------------------------ on real sockets


@pytest.fixture
def pair(lab):
    """Two cards that know each other."""
    a, b = lab.plug("a"), lab.plug("b")
    a.send(frame(EVERYBODY, mac(1)))
    b.send(frame(EVERYBODY, mac(2)))
    a.receive()
    b.receive()
    return a, b


def test_a_delayed_frame_comes_after_the_delay_and_in_order(lab, pair):
    a, b = pair
    number = lab.switch.fault("lan", "delay", seed="1", settings={"seconds": 0.1, "jitter": 0.0})
    sent = numbered(20)
    begun = time.monotonic()
    a.send(*sent)
    assert b.receive() == sent[0]
    assert time.monotonic() - begun >= 0.1
    assert b.drain() == sent[1:]
    lab.switch.undo(number)
    lab.switch.undo(number)
    a.send(sent[0])
    assert b.receive() == sent[0]


@pytest.mark.parametrize("place", [{}, {"link": "a", "direction": "out"}, {"link": "b", "direction": "in"}])
def test_loss_on_each_stretch_of_the_way(lab, pair, place):
    a, b = pair
    lab.switch.fault("lan", "loss", seed="1", settings={"probability": 0.2}, **place)
    sent = numbered(2000)
    for at in range(0, len(sent), 100):
        a.send(*sent[at : at + 100])
    got = b.drain()
    assert within_chance(2000 - len(got), 0.2, 2000)
    assert [each for each in sent if each in set(got)] == got
    way_back = frame(mac(1), mac(2))
    if place:
        b.send(*[way_back] * 100)
        assert len(a.drain()) == 100, "the other direction is another"
    counted = lab.switch.counters("lan")
    lost = counted["a"]["out"]["dropped"].get("loss", 0) + counted["b"]["in"]["dropped"].get("loss", 0)
    assert lost == 2000 - len(got)


def test_nothing_crosses_a_cut_not_even_what_is_on_its_way(lab, pair):
    a, b = pair
    c = lab.plug("c")
    lab.switch.fault("lan", "delay", seed="1", settings={"seconds": 0.3, "jitter": 0.0})
    a.send(*numbered(10), frame(EVERYBODY, mac(1), b"all"))
    while lab.switch.counters("lan")["a"]["out"]["frames"] < 12:
        pass
    number = lab.switch.cut("lan", [["a", "c"], ["b"]])
    assert c.drain(timeout=0.6) == [frame(EVERYBODY, mac(1), b"all")]
    assert b.drain(timeout=0.05) == []
    assert lab.dropped("b", "in") == {"partition": 11}
    lab.switch.undo(number)
    a.send(numbered(1)[0])
    assert b.receive() == numbered(1)[0]


def test_who_is_in_no_group_is_alone(lab, pair):
    a, b = pair
    lab.switch.cut("lan", [["a"]])
    a.send(*numbered(3))
    b.send(frame(mac(1), mac(2)))
    assert (a.drain(timeout=0.1), b.drain(timeout=0.1)) == ([], [])


def test_an_unplugged_cable_carries_nothing(lab, pair):
    a, b = pair
    lab.switch.set_link("lan", "a", up=False)
    a.send(*numbered(3))
    b.send(frame(mac(1), mac(2)))
    assert (a.drain(timeout=0.1), b.drain(timeout=0.1)) == ([], [])
    assert (lab.dropped("a", "out"), lab.dropped("a", "in")) == ({"unplugged": 3}, {"unplugged": 1})
    lab.switch.set_link("lan", "a", up=True)
    a.send(numbered(1)[0])
    assert b.receive() == numbered(1)[0]


def flood(lab, a):
    """Have a send numbered frames to b, which does not read, until the switch has passed all on it can."""
    count = 0
    while not lab.dropped("b", "in").get("guest too slow"):
        a.send(*(frame(mac(2), mac(1), b"%06d" % n + bytes(1400)) for n in range(count, count + 100)))
        count += 100
    while lab.switch.counters("lan")["a"]["out"]["frames"] <= count:
        pass


def numbers_in(frames):
    return [int(each[14:20]) for each in frames]


def test_jitter_keeps_order_also_of_frames_that_it_does_not_delay(lab, pair):
    a, b = pair
    settings = {"seconds": 0.002, "jitter": 0.02}
    lab.switch.fault("lan", "delay", seed="1", link="a", direction="out", settings=settings)
    sent = numbered(3000)
    for each in sent:
        a.send(each)
    assert b.drain() == sent


def test_what_is_delayed_for_a_guest_that_is_gone_makes_room_for_others(lab, pair):
    a, b = pair
    number = lab.switch.fault("lan", "delay", seed="1", settings={"seconds": 3600.0, "jitter": 0.0})
    sent = numbered(17_000)
    for at in range(0, len(sent), 100):
        a.send(*sent[at : at + 100])
    while lab.switch.counters("lan")["a"]["out"]["frames"] < 17_001:
        pass
    assert lab.dropped("a", "out") == {"too many in flight": 17_000 - 16_384}
    lab.switch.undo(number)
    lab.switch.attach("lan", "a", port=None)
    lab.switch.attach("lan", "a", port=lab.folder / "a.sock")
    assert lab.dropped("a", "out")["unplugged"] == 16_384
    lab.switch.fault("lan", "delay", seed="1", settings={"seconds": 0.01, "jitter": 0.0})
    a.send(sent[0])
    assert b.receive() == sent[0]


@pytest.mark.parametrize("place", [{"link": "a", "direction": "out"}, {}, {"link": "b", "direction": "in"}])
@pytest.mark.parametrize("unplugged", ["a", "b"])
def test_a_delayed_frame_does_not_pass_a_cable_that_was_pulled_out_meanwhile(lab, pair, place, unplugged):
    a, b = pair
    lab.switch.fault("lan", "delay", seed="1", settings={"seconds": 0.3, "jitter": 0.0}, **place)
    a.send(numbered(1)[0])
    while lab.switch.counters("lan")["a"]["out"]["frames"] < 2:
        pass
    lab.switch.set_link("lan", unplugged, up=False)
    lab.switch.set_link("lan", unplugged, up=True)
    assert b.drain(timeout=0.5) == []
    dropped = [lab.dropped("a", "out"), lab.dropped("b", "in")]
    assert sum(each.get("unplugged", 0) for each in dropped) == 1


def test_a_delay_of_a_day_is_no_trouble_to_wait_for(lab, pair):
    a, b = pair
    number = lab.switch.fault("lan", "delay", seed="1", settings={"seconds": 1e10, "jitter": 0.0})
    a.send(numbered(1)[0])
    while lab.switch.counters("lan")["a"]["out"]["frames"] < 2:
        pass
    lab.switch.undo(number)
    a.send(numbered(2)[1])
    assert b.receive() == numbered(2)[1]


def test_frames_that_a_judge_has_no_time_for_are_counted_as_such(lab, pair):
    a, b = pair
    decided = threading.Event()
    number = lab.switch.ask("lan", lambda each: not decided.wait(30), link="a", direction="out")
    sent = numbered(5000)
    for at in range(0, len(sent), 100):
        a.send(*sent[at : at + 100])
    while not lab.dropped("a", "out").get("function too slow"):
        pass
    decided.set()
    assert len(b.drain(timeout=1)) == 4096
    assert lab.dropped("a", "out") == {"function too slow": 5000 - 4096}
    lab.switch.undo(number)


@pytest.mark.parametrize("done", ["cut", "unplugged"])
def test_frames_that_wait_for_a_guest_do_not_cross_either(lab, pair, done):
    """A guest that takes its frames late gets those that its QEMU had, and no others."""
    a, b = pair
    c = lab.plug("c")
    flood(lab, a)
    before = lab.switch.counters("lan")["b"]["in"]
    if done == "cut":
        lab.switch.cut("lan", [["a"], ["b", "c"]])
    else:
        lab.switch.set_link("lan", "b", up=False)
    after = lab.switch.counters("lan")["b"]["in"]
    reason = {"cut": "partition", "unplugged": "unplugged"}[done]
    withdrawn = after["dropped"][reason]
    assert withdrawn > 100
    assert before["frames"] - after["frames"] == withdrawn
    assert before["bytes"] - after["bytes"] == withdrawn * 1420
    assert numbers_in(b.drain()) == list(range(after["frames"] - 1)), "the pair had one frame before"
    if done == "cut":
        c.send(frame(mac(2), mac(3), b"123456"))
        assert numbers_in([b.receive()]) == [123456]


def test_the_test_judges_each_frame_in_order(lab, pair):
    a, b = pair
    seen = []

    def odd(each):
        seen.append(each)
        return bool(int(each[14:20]) % 2)

    number = lab.switch.ask("lan", odd, link="a", direction="out")
    sent = numbered(3000)
    for at in range(0, len(sent), 100):
        a.send(*sent[at : at + 100])
    assert b.drain(timeout=1) == sent[::2]
    assert seen == sent
    assert lab.dropped("a", "out") == {"drop": 1500}
    lab.switch.undo(number)
    a.send(sent[1])
    assert b.receive() == sent[1]


def test_a_judge_that_raises_lets_frames_pass_and_is_told_at_the_end(lab, pair):
    a, b = pair
    asked = []

    def broken(each):
        asked.append(each)
        raise LookupError("no such station")

    number = lab.switch.ask("lan", broken, link="a", direction="out")
    sent = numbered(3)
    a.send(*sent)
    assert [b.receive() for _ in sent] == sent
    assert asked == sent[:1]
    assert lab.switch.counters("lan")  # it still listens
    with pytest.raises(LookupError, match="no such station"):
        lab.switch.undo(number)
    lab.switch.undo(number)


def test_the_switch_may_end_while_the_test_judges(lab, pair):
    a, _ = pair
    asked, decided = threading.Event(), threading.Event()

    def slow(_frame):
        asked.set()
        return decided.wait(30)

    lab.switch.ask("lan", slow, link="a", direction="out")
    process = psutil.Process(lab.switch.pid)
    a.send(*numbered(1))
    assert asked.wait(30)
    closing = threading.Thread(target=lab.switch.close)
    closing.start()
    try:
        wait_until(partial(ended, process), describe="the switch to end", timeout=30, every=0.01)
    finally:
        decided.set()
        closing.join()


def ended(process):
    if process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
        raise NotYet("it runs")


def test_faults_that_are_removed_let_go_of_nothing_twice(lab, pair):
    a, b = pair
    numbers = [
        lab.switch.fault("lan", "duplicate", seed="1", settings={"probability": 1.0}) for _ in range(2)
    ]
    a.send(numbered(1)[0])
    assert len(b.drain()) == 4
    for number in numbers:
        lab.switch.undo(number)
    a.send(numbered(1)[0])
    assert len(b.drain()) == 1


@pytest.mark.parametrize("place", [{"link": "a", "direction": "out"}, {}, {"link": "b", "direction": "in"}])
@pytest.mark.parametrize("moved", ["a", "b"])
def test_no_frame_outlasts_the_machine_that_sent_it_or_that_it_was_meant_for(lab, pair, place, moved):
    a, b = pair
    lab.switch.fault("lan", "delay", seed="1", settings={"seconds": 0.3, "jitter": 0.0}, **place)
    a.send(frame(mac(2), mac(1), b"late"))
    while lab.switch.counters("lan")["a"]["out"]["frames"] < 2:
        pass
    lab.switch.attach("lan", moved, port=None)
    lab.switch.attach("lan", moved, port=lab.folder / f"{moved}.sock")
    a.send(frame(mac(2), mac(1), b"next"))
    assert b.receive() == frame(mac(2), mac(1), b"next")
    assert b.drain() == []
    dropped = [lab.dropped("a", "out"), lab.dropped("b", "in")]
    assert sum(each.get("unplugged", 0) for each in dropped) == 1
