from __future__ import annotations

import re
import threading
from contextlib import ExitStack
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

import pytest_kvm as kvm
from pytest_kvm.errors import DomainFailed, WaitTimeout
from pytest_kvm.provision import spare_pool as pool_module
from pytest_kvm.provision.spare_pool import SparePool
from pytest_kvm.provision.start_request import Place
from pytest_kvm.spec.network import declare_network
from tests.unit.provision.free_rooms import FreeAdmission
from tests.unit.provision.start_requests import START_REQUEST

TEMPLATE = SimpleNamespace(key="c0ffee")
WITHIN = 10


class FakeClone:
    """Writes down what is done to it."""

    def __init__(self, place: str, *, refuses: bool) -> None:
        self.place = place
        self.done: list[str] = []
        self.machine = SimpleNamespace(
            name=place,
            shell=SimpleNamespace(connect=lambda: self.done.append("log in")),
            domain=SimpleNamespace(suspend=lambda: self.done.append("pause")),
        )
        self._refuses = refuses

    def wake(self) -> FakeClone:
        self.done.append("wake")
        if self._refuses:
            raise DomainFailed("it sleeps on")
        return self


class Maker:
    """Makes clones, one for each that it is allowed to make."""

    def __init__(self) -> None:
        self.made: list[FakeClone] = []
        self.removed: list[FakeClone] = []
        self.allowed = threading.Semaphore(0)
        self.gone = threading.Semaphore(0)
        self.asked = threading.Semaphore(0)
        self.failure: Exception | None = None
        self.refuses = False

    def __call__(self, request, template):
        self.asked.release()
        assert self.allowed.acquire(timeout=WITHIN)
        if self.failure:
            raise self.failure
        with request.teardown.adding() as stack:
            undo = stack.enter_context(ExitStack())
            clone = FakeClone(str(request.place), refuses=self.refuses)
            undo.callback(self._remove, clone)
        self.made.append(clone)
        return clone, undo

    def _remove(self, clone: FakeClone) -> None:
        self.removed.append(clone)
        self.gone.release()

    def allow(self, count: int = 1) -> None:
        self.allowed.release(count)

    def make(self, count: int = 1) -> None:
        """Have so many made; the last of them may be on its way still."""
        self.allow(count)
        self.wait(count)

    def wait(self, count: int = 1) -> None:
        """Wait until so many more are being made."""
        for _ in range(count):
            assert self.asked.acquire(timeout=WITHIN)


@pytest.fixture
def maker():
    return Maker()


@pytest.fixture
def free(monkeypatch):
    """Say how much memory is free."""

    def free(mib):
        monkeypatch.setattr(pool_module, "memory_available_mib", lambda: mib)

    free(64 * 1024)
    return free


@pytest.fixture
def admission():
    return FreeAdmission()


@pytest.fixture
def new_pool(maker, free, admission):
    pools = []

    def new_pool(size=None):
        pools.append(SparePool(maker, size=size, admission=admission))
        return pools[-1]

    yield new_pool
    maker.allow(100)
    for pool in pools:
        pool.close()


def prepared(spare):
    """Wait until nothing is done to a spare clone any more; return what was done."""
    with spare.busy:
        return spare.clone.done


def test_what_is_started_twice_is_ready_for_a_third_time(maker, new_pool):
    pool = new_pool()
    pool.note_start(START_REQUEST, TEMPLATE)
    assert pool.take(START_REQUEST, TEMPLATE) is None
    pool.note_start(START_REQUEST, TEMPLATE)
    maker.make()
    assert pool.take(START_REQUEST, TEMPLATE).clone in maker.made


def test_a_parked_clone_is_woken_up_and_logged_in_before_it_is_paused_again(maker, new_pool):
    pool = new_pool(size=2)
    pool.note_start(START_REQUEST, TEMPLATE)
    maker.make(2)
    first, second = pool.take(START_REQUEST, TEMPLATE), pool.take(START_REQUEST, TEMPLATE)
    # Nobody knows how soon they are prepared; half prepared they are not to be had.
    assert first.take().done in (["wake", "log in", "pause"], [])
    assert second is not first
    assert first.clone.place != second.clone.place
    assert pool.take(START_REQUEST, TEMPLATE) is None


def test_who_takes_a_clone_early_has_it_as_it_was_frozen(maker, new_pool, monkeypatch):
    pool = new_pool(size=1)
    began = threading.Event()
    prepare = pool_module.Spare.prepare

    def late(spare):
        assert began.wait(WITHIN)
        prepare(spare)

    monkeypatch.setattr(pool_module.Spare, "prepare", late)
    pool.note_start(START_REQUEST, TEMPLATE)
    maker.make()
    spare = pool.take(START_REQUEST, TEMPLATE)
    clone = spare.take()
    began.set()
    pool.close()  # waits for what the pool is at
    assert clone.done == []


@pytest.mark.parametrize(
    "other",
    [{"name": "database"}, {"hostname": "other"}, {"spec": kvm.GuestSpec(identity="unique")}],
    ids=str,
)
def test_clones_are_for_guests_of_that_name_only(maker, new_pool, other):
    pool = new_pool(size=1)
    pool.note_start(START_REQUEST, TEMPLATE)
    maker.make()
    assert pool.take(replace(START_REQUEST, **other), TEMPLATE) is None
    assert pool.take(START_REQUEST, SimpleNamespace(key="0ddba11")) is None
    assert pool.take(START_REQUEST, TEMPLATE) is not None


def _with_card(*, mac="52:54:00:00:00:01", mtu=1500, network=None, **fields):
    lan: Any = declare_network("lan", kvm.NetworkSpec(mtu=mtu))
    lan.backend = SimpleNamespace(network=network)
    spec = kvm.GuestSpec(nics=[kvm.Nic(lan, **fields)])
    card = SimpleNamespace(index=0, names=("web",), mac=mac, addresses=("10.1.0.5/24",), segment=lan)
    return replace(START_REQUEST, spec=spec, nics=(card,))


@pytest.mark.parametrize(
    "other",
    [{"mac": "52:54:00:00:00:02"}, {"mtu": 9000}, {"link": "down"}, {"dhcp": True}, {"network": "other"}],
    ids=str,
)
def test_clones_are_for_guests_with_the_same_cards_on_segments(maker, new_pool, other):
    pool = new_pool(size=1)
    pool.note_start(_with_card(), TEMPLATE)
    maker.make()
    assert pool.take(_with_card(**other), TEMPLATE) is None
    assert pool.take(_with_card(), TEMPLATE) is not None


def test_clones_on_a_network_go_before_it(maker, new_pool):
    pool = new_pool(size=2)
    pool.note_start(_with_card(network="one"), TEMPLATE)
    pool.note_start(_with_card(network="other"), TEMPLATE)
    maker.make(3)
    pool.drop("one")
    assert pool.take(_with_card(network="one"), TEMPLATE) is None
    assert pool.take(_with_card(network="other"), TEMPLATE) is not None
    assert len(maker.removed) == 2


@pytest.mark.parametrize(("mib", "parks"), [(1024, False), (1025, True)])
def test_memory_is_left_for_others(maker, new_pool, free, mib, parks):
    free(mib)
    pool = new_pool()
    pool.note_start(START_REQUEST, TEMPLATE)
    pool.note_start(START_REQUEST, TEMPLATE)
    if parks:
        maker.make()
    assert (pool.take(START_REQUEST, TEMPLATE) is not None) == parks


def test_a_number_is_a_number(maker, new_pool, free):
    free(0)
    pool = new_pool(size=3)
    pool.note_start(START_REQUEST, TEMPLATE)
    pool.note_start(START_REQUEST, TEMPLATE)
    maker.make(3)
    assert [pool.take(START_REQUEST, TEMPLATE) is not None for _ in range(4)] == [True, True, True, False]


def test_none_are_parked_where_none_are_wanted(maker, new_pool):
    pool = new_pool(size=0)
    pool.note_start(START_REQUEST, TEMPLATE)
    pool.note_start(START_REQUEST, TEMPLATE)
    assert pool.take(START_REQUEST, TEMPLATE) is None


@pytest.mark.parametrize("kind", [DomainFailed, OSError, KeyError, RuntimeError])
def test_a_clone_that_cannot_be_made_is_told_and_nobody_waits_for_it(maker, new_pool, caplog, kind):
    maker.failure = kind("no clone today")
    pool = new_pool(size=1)
    pool.note_start(START_REQUEST, TEMPLATE)
    maker.make()
    assert pool.take(START_REQUEST, TEMPLATE) is None
    assert re.search("web: no spare clone could be started: '?no clone today", caplog.text)


def test_where_no_thread_can_be_had_guests_start_without_the_pool(maker, new_pool, monkeypatch, caplog):
    def refuse(*_):
        raise RuntimeError("can't start new thread")

    pool = new_pool(size=1)
    monkeypatch.setattr(threading.Thread, "start", refuse)
    pool.note_start(START_REQUEST, TEMPLATE)
    monkeypatch.undo()
    assert pool.take(START_REQUEST, TEMPLATE) is None
    assert "web: no spare clone could be started: can't start new thread" in caplog.text


def test_nobody_waits_for_a_clone_whose_making_has_not_begun(maker, new_pool):
    other = replace(START_REQUEST, name="database")
    pool = new_pool(size=1)
    pool.note_start(START_REQUEST, TEMPLATE)
    maker.wait()
    pool.note_start(other, TEMPLATE)
    assert pool.take(other, TEMPLATE) is None
    maker.allow(2)
    assert pool.take(START_REQUEST, TEMPLATE) is not None
    pool.close()
    assert len(maker.made) == 1


def test_a_clone_that_comes_too_late_for_who_waited_is_removed(maker, new_pool, monkeypatch):
    monkeypatch.setattr(pool_module, "_PATIENCE", 0.01)
    pool = new_pool(size=1)
    pool.note_start(START_REQUEST, TEMPLATE)
    maker.wait()
    assert pool.take(START_REQUEST, TEMPLATE) is None
    maker.allow()
    assert maker.gone.acquire(timeout=WITHIN)
    pool.close()
    assert maker.removed == maker.made
    assert maker.made[0].done == []  # nobody has prepared what was removed


def test_a_clone_that_does_not_wake_up_is_removed(maker, new_pool, caplog):
    maker.refuses = True
    pool = new_pool(size=1)
    pool.note_start(START_REQUEST, TEMPLATE)
    maker.allow()
    assert maker.gone.acquire(timeout=WITHIN)
    assert maker.removed == maker.made


def test_the_end_removes_what_nobody_took(maker, new_pool):
    pool = new_pool(size=3)
    pool.note_start(START_REQUEST, TEMPLATE)
    maker.make(3)
    mine = pool.take(START_REQUEST, TEMPLATE)
    mine.take()
    pool.close()
    assert mine.clone not in maker.removed
    assert set(maker.removed) == set(maker.made) - {mine.clone}


def test_the_end_lets_go_of_who_waits(maker, new_pool):
    pool = new_pool(size=2)
    pool.note_start(START_REQUEST, TEMPLATE)
    maker.wait()  # the first is being made, the second waits for that
    taken = []

    def take():
        taken.append([pool.take(START_REQUEST, TEMPLATE) for _ in range(2)])

    waiting = threading.Thread(target=take)
    waiting.start()
    closing = threading.Thread(target=pool.close)
    closing.start()
    maker.allow(2)
    closing.join(WITHIN)
    waiting.join(WITHIN)
    assert not waiting.is_alive()
    assert maker.removed == maker.made


def test_of_many_guests_those_started_last_have_a_clone(maker, new_pool):
    pool = new_pool()
    requests = [
        replace(START_REQUEST, name=f"web{number}", place=Place(f"web{number}")) for number in range(6)
    ]
    for request in requests:
        pool.note_start(request, TEMPLATE)
        pool.note_start(request, TEMPLATE)
        maker.make()
    taken = [pool.take(request, TEMPLATE) for request in requests]
    assert taken[0] is None
    assert [each.clone for each in taken[-3:]] == maker.made[-3:]
    pool.close()
    assert len(maker.removed) == 6


def test_who_takes_a_clone_does_not_wait_for_one_that_hangs(maker, new_pool, monkeypatch):
    pool = new_pool(size=1)
    monkeypatch.setattr(pool_module, "_PATIENCE", 0.01)
    pool.note_start(START_REQUEST, TEMPLATE)
    maker.make()
    spare = pool.take(START_REQUEST, TEMPLATE)
    prepared(spare)
    with spare.busy, pytest.raises(WaitTimeout, match="not prepared"):
        spare.take()


def test_a_closed_pool_has_nothing(maker, new_pool):
    pool = new_pool(size=1)
    maker.allow()
    pool.note_start(START_REQUEST, TEMPLATE)
    pool.close()
    assert pool.take(START_REQUEST, TEMPLATE) is None


# ---------------------------------------------------------------- room on this machine


def test_a_spare_clone_has_room_until_it_is_taken(maker, new_pool, admission):
    pool = new_pool(size=1)
    pool.note_start(START_REQUEST, TEMPLATE)
    maker.make()
    spare = pool.take(START_REQUEST, TEMPLATE)
    assert [room.amount for room in admission.rooms] == [START_REQUEST.room.amount]
    spare.take()
    assert admission.rooms == []


def test_where_there_is_no_room_nothing_is_started_and_nobody_is_warned(maker, new_pool, admission, caplog):
    admission.is_full = True
    pool = new_pool(size=1)
    maker.allow()
    pool.note_start(START_REQUEST, TEMPLATE)
    assert pool.take(START_REQUEST, TEMPLATE) is None
    pool.close()
    assert maker.made == []
    assert [record for record in caplog.records if record.levelname == "WARNING"] == []


def test_spare_clones_give_way_to_guests_of_the_same_process(maker, new_pool, admission):
    pool = new_pool(size=2)
    assert not admission.give_way()
    pool.note_start(START_REQUEST, TEMPLATE)
    maker.make(2)
    assert admission.give_way()
    for _ in range(2):
        assert maker.gone.acquire(timeout=WITHIN)
    pool.close()
    assert admission.rooms == []
    assert maker.removed == maker.made


def test_spare_clones_give_way_to_guests_of_other_processes(maker, new_pool, admission):
    admission.somebody_waits = True
    pool = new_pool(size=1)
    pool.note_start(START_REQUEST, TEMPLATE)
    maker.make()
    assert maker.gone.acquire(timeout=WITHIN)


def test_the_room_of_a_clone_that_cannot_be_made_is_given_back(maker, new_pool, admission):
    maker.failure = DomainFailed("no")
    pool = new_pool(size=1)
    pool.note_start(START_REQUEST, TEMPLATE)
    maker.make()
    assert pool.take(START_REQUEST, TEMPLATE) is None
    assert admission.rooms == []
