from __future__ import annotations

import threading
from itertools import count

import pytest

from pytest_kvm.hypervisor import call_watch
from pytest_kvm.hypervisor.call_watch import CallWatch
from pytest_kvm.waiting import NotYet, wait_until

PIDS = count(4711)


class Qemu:
    """A process of which a test says how it looks."""

    def __init__(self, pid):
        self.pid = pid
        self.is_stopped = False
        self.looks = 0
        self.moved_with_each_look: int | None = 0
        self.ended = threading.Event()

    @property
    def bytes_moved(self):
        self.looks += 1
        return None if self.moved_with_each_look is None else self.looks * self.moved_with_each_look

    def wait(self, timeout):
        return self.ended.wait(timeout)


@pytest.fixture
def qemu(monkeypatch):
    monkeypatch.setattr(call_watch, "_LOOK_EVERY", 0.001)
    qemu = Qemu(next(PIDS))
    yield qemu
    qemu.ended.set()


@pytest.fixture
def given_up():
    return []


@pytest.fixture
def watch(qemu, given_up):
    return CallWatch(qemu, give_up=given_up.append)


def after_looks(qemu, number):
    """Wait until QEMU was looked at so many times more."""
    end = qemu.looks + number

    def look():
        if qemu.looks < end:
            raise NotYet(f"{qemu.looks} of {end}")

    wait_until(look, describe="looks", timeout=60, every=0.001)


def heard(given_up, times=1):
    def look():
        if len(given_up) < times:
            raise NotYet(f"{len(given_up)} times")

    wait_until(look, describe="the end", timeout=60, every=0.001)


def test_one_that_is_stopped_while_somebody_waits_is_given_up(watch, qemu, given_up):
    qemu.moved_with_each_look = 1
    with watch.call():
        qemu.is_stopped = True
        heard(given_up)
    assert given_up[0].startswith("QEMU does not answer: its process was stopped (SIGSTOP) for ")


def test_it_is_given_up_again_while_the_call_still_waits(watch, qemu, given_up):
    qemu.is_stopped = True
    with watch.call():
        heard(given_up, times=2)


def test_one_that_is_continued_in_time_is_not(watch, qemu, given_up):
    with watch.call():
        for _ in range(3):
            qemu.is_stopped = True
            after_looks(qemu, 10)
            qemu.is_stopped = False
            after_looks(qemu, 2)
    assert given_up == []


def test_short_calls_to_one_that_is_stopped_do_not_add_up(watch, qemu, given_up):
    qemu.is_stopped = True
    for _ in range(5):
        with watch.call():
            after_looks(qemu, 8)
    assert given_up == []


@pytest.mark.parametrize("moved", [1, None], ids=["it reads or writes", "that is not known"])
def test_one_that_works_is_waited_for(watch, qemu, given_up, moved):
    qemu.moved_with_each_look = moved
    with watch.call():
        after_looks(qemu, call_watch._IDLE_LOOKS + 50)
    assert given_up == []


def test_one_that_does_nothing_is_given_up(watch, qemu, given_up):
    with watch.call():
        after_looks(qemu, call_watch._IDLE_LOOKS // 2)
        assert given_up == []
        heard(given_up)
    assert given_up[0].startswith("QEMU does not answer: it has neither read nor written for ")


def test_no_thread_is_left_once_nobody_waits_and_the_next_call_is_watched(watch, qemu, given_up):
    def threads():
        return [each for each in threading.enumerate() if each.name == f"kvm-call-watch-{qemu.pid}"]

    def look():
        if threads():
            raise NotYet("there is one")

    with watch.call(), watch.call():
        assert len(threads()) == 1
    wait_until(look, describe="the thread's end", timeout=60, every=0.001)
    qemu.is_stopped = True
    with watch.call():
        heard(given_up)


def test_one_that_has_ended_is_not_looked_at(watch, qemu, given_up):
    qemu.is_stopped = True
    qemu.ended.set()
    with watch.call():
        pass
    assert (qemu.looks, given_up) == (0, [])
