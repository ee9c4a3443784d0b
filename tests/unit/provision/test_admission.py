"""Room that several processes share: real files, real locks, real deaths."""

from __future__ import annotations

import os
import signal
from concurrent.futures import ThreadPoolExecutor

import pytest

from pytest_kvm.errors import GuestGone, NoCapacity
from pytest_kvm.host import limits as limits_module
from pytest_kvm.host import register as register_module
from pytest_kvm.host.limits import limits_of
from pytest_kvm.host.register import Register
from pytest_kvm.provision import admission as admission_module
from pytest_kvm.provision.admission import Admission
from pytest_kvm.provision.admission_rules import NOTHING, Amount
from pytest_kvm.settings import Settings
from pytest_kvm.waiting import NotYet, wait_until
from tests.admissions import OtherProcess, new_admission, take

ONE = Amount(memory=512, vcpus=1, guests=1)
INFINITE = float("inf")


@pytest.fixture
def admission(tmp_path):
    made = []

    def admission(**given):
        made.append(new_admission(tmp_path / "limits", **given))
        return made[-1]

    yield admission
    for each in made:
        each.close()


@pytest.fixture
def other(tmp_path):
    made = []

    def other(**most):
        made.append(OtherProcess(tmp_path / "limits", **most))
        return made[-1]

    yield other
    for each in made:
        each.close()


@pytest.fixture
def background():
    with ThreadPoolExecutor() as threads:
        yield threads.submit


def wait_for_waits(admission, number=1):
    """Wait until so many other processes wait for room."""

    def look():
        with admission._register.turn():
            waits = [wait for each in admission._others() for wait in each.waits]
        if len(waits) != number:
            raise NotYet(f"{len(waits)} wait")

    wait_until(look, describe="others to wait", timeout=20, every=0.02)


# ---------------------------------------------------------------- taking and giving back


def test_all_guests_of_a_test_have_room_or_none(admission, other):
    mine, busy = admission(guests=3), other(guests=3)
    busy.take(2)
    told = []

    def tell(why):
        told.append(why)
        busy.give()

    rooms = take(mine, ONE, ONE, tell=tell)
    assert [room.granted for room in rooms] == [ONE, ONE]
    held = f"pid {busy.pid} (test of {busy.pid}) has 2 guests of 0 MiB together"
    assert told == [
        f"waiting for room for 2 guests of 1 GiB together: at most 3 guests (said by a test); {held}"
    ]


def test_memory_is_counted_over_all_processes(admission, other):
    busy = other()
    busy.take(2, memory=1024)
    mine = admission(memory=3072, timeout=0.2)
    (room,) = take(mine, Amount(memory=512, guests=1))
    assert room.granted.memory == 512
    with pytest.raises(NoCapacity) as failure:
        take(mine, Amount(memory=1024, guests=1))
    assert "waiting for room for a guest of 1 GiB" in failure.value.brief
    assert "at most 3 GiB of memory (said by a test)" in failure.value.brief
    assert f"pid {busy.pid} (test of {busy.pid}) has 2 guests of 2 GiB together" in failure.value.brief
    assert "--kvm-admission-timeout" in failure.value.resolution
    assert not mine._me().waits, "a process that has given up is not waited for"


def test_a_killed_process_gives_everything_back_at_once(admission, other, tmp_path):
    mine, busy = admission(guests=2), other(guests=2)
    busy.take(2)
    (room,) = take(mine, ONE, tell=lambda _: busy.kill())
    assert room.granted == ONE
    assert len(list((tmp_path / "limits").glob("*.json"))) == 1, "what it has left is removed"


def test_a_stopped_process_keeps_what_it_has(admission, other):
    mine, busy = admission(guests=1, timeout=0.3), other(guests=1)
    busy.take()
    os.kill(busy.pid, signal.SIGSTOP)
    with pytest.raises(NoCapacity, match=f"pid {busy.pid} .* has a guest"):
        take(mine, ONE)


def test_a_fork_that_outlives_a_process_keeps_nothing(admission, tmp_path):
    """multiprocessing and pytest-forked leave copies of all descriptors behind."""
    reads, writes = os.pipe()
    parent = os.fork()
    if parent == 0:
        os.close(writes)
        take(new_admission(tmp_path / "limits"), ONE)
        if os.fork() == 0:
            os.read(reads, 1)  # stays until the test is over
        os._exit(0)
    os.close(reads)
    try:
        os.waitpid(parent, 0)
        assert take(admission(guests=1, timeout=1), ONE)[0].granted == ONE
    finally:
        os.close(writes)


def test_room_is_given_back_once(admission):
    mine = admission(guests=1)
    (room,) = take(mine, ONE)
    room.release()
    room.release()
    assert mine._me().grants == ()
    assert take(mine, ONE)[0].granted == ONE


def test_the_end_gives_all_back(admission, other):
    mine, busy = admission(guests=1), other(guests=1)
    (room,) = take(mine, ONE)
    mine.close()
    assert busy.take() == "done"
    room.release()
    with mine._register.turn():
        assert len(mine._others()) == 1, "a late word does not bring it back"


# ---------------------------------------------------------------- waiting


def test_a_big_request_is_not_starved_by_small_ones(admission, other, background):
    first, second = other(guests=2), other(guests=2)
    first.take()
    mine = admission(guests=2)
    big = background(take, mine, ONE, ONE)
    wait_for_waits(admission())
    second.tell("take")  # there would be room, but not for the one before
    wait_for_waits(admission(), 2)
    first.give()
    rooms = big.result(20)
    assert [room.granted for room in rooms] == [ONE, ONE]
    for room in rooms:
        room.release()
    assert second.hear() == "done"


def test_a_guest_that_is_removed_no_longer_waits(admission, other, background):
    busy = other(guests=1)
    busy.take()
    mine = admission(guests=1)
    room = mine.room("web", ONE)
    asked = background(room.wait, str)
    wait_for_waits(admission())
    room.release()
    with pytest.raises(GuestGone, match="web was removed before there was room"):
        asked.result(20)
    assert not mine._me().waits


def test_two_that_each_have_one_and_want_another_do_not_wait_for_ever(admission, other):
    """Neither has said before what it would want: the later one is refused, the other goes on."""
    first, second = other(guests=2), other(guests=2)
    first.take()
    second.take()
    first.tell("take")
    wait_for_waits(admission())
    assert second.take() == (
        "no room for a guest of 0 MiB: this process and others have guests, and wait for each other's"
    )
    second.give()
    assert first.hear() == "done"


def test_tests_that_each_want_two_take_turns(other):
    """Many times, in several processes at once: never more than there may be, and all get through."""
    racers = [other(guests=5) for _ in range(4)]
    for racer in racers:
        racer.tell("race", 40)
    assert all(2 <= float(racer.hear()) <= 5 for racer in racers)


def test_a_process_that_has_too_much_itself_is_told_so_at_once(admission):
    mine = admission(guests=2)
    mine.room("database", ONE).wait(str)
    with pytest.raises(NoCapacity) as failure:
        take(mine, ONE, ONE)
    assert failure.value.brief == (
        "no room for 2 guests of 1 GiB together beside the other guests of this process: it has "
        "a guest of 512 MiB, and at most 2 guests (said by a test) can be had"
    )
    assert "database: 512 MiB, for test_x" in failure.value.details
    assert "--kvm-max-guests" in failure.value.resolution


def test_more_than_there_can_ever_be_is_told_at_once(admission):
    with pytest.raises(NoCapacity, match="web: there is never room for 2 GiB of memory"):
        admission(memory=1024).room("web", Amount(2048, 1, 1)).wait(str)


def test_a_guest_that_is_being_removed_is_waited_for(admission, background):
    """It is in the way, but not for long."""
    mine = admission(guests=1)
    (failed,) = take(mine, ONE)
    failed.leave()
    asked = background(take, mine, ONE)
    wait_until(lambda: mine._waiting or _not_yet(), describe="the wish", timeout=20, every=0.02)
    failed.release()
    assert asked.result(20)[0].granted == ONE


def test_nothing_is_lost_while_another_process_is_stopped_in_its_turn(admission, other, monkeypatch, caplog):
    monkeypatch.setattr(register_module, "_GUARD_WITHIN", 0.05)
    mine, in_its_way = admission(guests=1), admission()
    (room,) = take(mine, ONE)
    with in_its_way._register.turn():
        room.release()
        with pytest.raises(NoCapacity, match="another process has its turn"):
            take(mine, ONE)
    assert "could not be written down" in caplog.text
    mine.note_test("the next")
    assert other(guests=1).take() == "done", "neither the room nor a wish is left"


# ---------------------------------------------------------------- reservations


def test_what_was_reserved_is_used_and_the_rest_given_back(admission):
    mine = admission(guests=3)
    mine.reserve([ONE, ONE], tell=str)
    room = mine.room("web", ONE)
    room.take_reserved()
    assert room.granted == ONE
    mine.end_reservation()
    assert [grant.name for grant in mine._me().grants] == ["web"]


@pytest.mark.parametrize("amount", [Amount(256, 1, 1), Amount(768, 2, 1)])
def test_a_guest_that_needs_something_else_than_was_reserved_gets_it(admission, amount):
    mine = admission(memory=1024)
    mine.reserve([ONE], tell=str)
    room = mine.room("web", amount)
    room.take_reserved()
    room.wait(str)
    mine.end_reservation()
    assert mine._me().has == amount


def test_of_a_guest_with_unknown_needs_the_usual_is_assumed_where_that_fits(admission):
    mine = admission(memory=1024)
    mine.reserve([None], tell=str)
    assert mine._me().has == Amount(1024, 2, 1)
    mine.end_reservation()
    mine.reserve([None, ONE], tell=str)
    assert mine._me().has == ONE


def test_a_reservation_within_another_leaves_that_alone(admission):
    mine = admission(guests=3)
    mine.reserve([ONE, ONE], tell=str)
    with mine.reserved([ONE], tell=str):
        assert mine._me().has.guests == 3
    assert mine._me().has.guests == 2


# ---------------------------------------------------------------- spare clones


def test_spare_clones_give_way_before_anybody_waits(admission):
    mine = admission(guests=1)
    spare = mine.room_if_free("web", ONE)
    told = []

    def give_way():
        spare.release()
        return True

    mine.on_shortage(give_way)
    assert take(mine, ONE, tell=told.append)[0].granted == ONE
    assert told == []


def test_there_is_no_room_for_a_spare_clone_while_somebody_waits(admission, other):
    mine, busy = admission(guests=9), other(guests=1)
    assert mine.room_if_free("web", ONE) is not None
    assert not mine.others_wait()
    busy.tell("take")
    wait_for_waits(mine)
    assert mine.others_wait()
    assert mine.room_if_free("web", ONE) is None


@pytest.mark.parametrize("most", [1, 2])
def test_a_reset_is_told_whether_there_is_room_for_both_machines(admission, most):
    mine = admission(guests=most)
    (room,) = take(mine, ONE)
    with room.doubled() as has_room:
        assert has_room == (most == 2)
        assert mine._me().has_in_all.guests == most
    assert mine._me().has_in_all == ONE


# ---------------------------------------------------------------- what this machine has


@pytest.fixture
def machine(monkeypatch):
    """Say what this machine has."""

    def machine(*, total, available, cpus=2):
        monkeypatch.setattr(limits_module, "memory_total_mib", lambda: total)
        monkeypatch.setattr(admission_module, "memory_available_mib", lambda: available)
        monkeypatch.setattr(limits_module, "cpus_available", lambda: cpus)

    return machine


def settings(tmp_path, **given):
    return Settings(cache_dir=tmp_path, run_dir=tmp_path, **given)


def measured(tmp_path):
    return Admission(Register(tmp_path / "limits"), limits_of(settings(tmp_path)), timeout=lambda: 0.1)


def test_what_is_granted_and_not_yet_taken_is_not_free(tmp_path, machine, monkeypatch):
    machine(total=8192, available=4096)
    mine = measured(tmp_path)
    (room,) = take(mine, Amount(3072, 1, 1))
    with pytest.raises(NoCapacity, match="1 GiB of this machine's memory are left for guests"):
        take(mine, Amount(2048, 1, 1))
    # A part of it is taken: it is missing from what is available, and no longer promised.
    touched = {os.getpid(): 1024, os.getppid(): 100}
    monkeypatch.setattr(admission_module, "memory_touched_mib", touched.get)
    room.note_process(2**22 + 1)  # it has ended
    room.note_process(os.getpid())
    room.note_process(os.getppid())
    assert room.pids == (os.getpid(), os.getppid())
    assert take(mine, Amount(2048, 1, 1))[0].granted.memory == 2048
    mine.close()


def test_what_qemu_takes_beside_its_guest_is_not_free_either(tmp_path, machine):
    machine(total=8192, available=2100)
    mine = Admission(
        Register(tmp_path / "limits"),
        limits_of(settings(tmp_path)),
        timeout=lambda: 0.1,
        overhead=lambda: 256,
    )
    take(mine, Amount(1024, 1, 1))
    with pytest.raises(NoCapacity, match="564 MiB of this machine's memory are left for guests"):
        take(mine, Amount(600, 1, 1))
    take(mine, Amount(564, 1, 1))
    mine.close()


def test_memory_that_only_other_programs_have_is_not_waited_for_to_the_end(tmp_path, machine, monkeypatch):
    machine(total=8192, available=300)
    monkeypatch.setattr(admission_module, "_FOR_OTHER_PROGRAMS", 0)
    mine = measured(tmp_path)
    with pytest.raises(NoCapacity) as failure:
        take(mine, ONE)
    assert failure.value.brief == (
        "no room for a guest of 512 MiB: 300 MiB of this machine's memory are left for guests, "
        "and the guests of other processes do not have so much"
    )
    assert "--kvm-max-memory" in failure.value.resolution
    mine.close()


@pytest.mark.parametrize(
    ("given", "most"),
    [
        ({}, (14336, 20, INFINITE)),
        ({"max_memory": 1024, "max_vcpus": 3, "max_guests": 4}, (1024, 3, 4)),
        ({"max_memory": "none", "max_vcpus": "none"}, (INFINITE,) * 3),
        ({"uri": "qemu+ssh://elsewhere/system"}, (INFINITE,) * 3),
    ],
)
def test_limits(tmp_path, machine, given, most):
    machine(total=16384, available=8000)
    limits = limits_of(settings(tmp_path, **given))
    assert tuple(ceiling.most for ceiling in limits.ceilings) == most
    assert limits.is_measured == (given == {})


def test_a_small_machine_keeps_an_eighth(tmp_path, machine):
    machine(total=2048, available=2000)
    limits = limits_of(settings(tmp_path))
    assert limits.memory.most == 1792
    with pytest.raises(NoCapacity) as failure:
        limits.check((2048, 1, 1), whose="web")
    assert failure.value.brief == (
        "web: there is never room for 2 GiB of memory: all guests on this machine together may have "
        "1.75 GiB of memory (2 GiB in all, less 256 MiB for everything else)"
    )
    assert failure.value.resolution == "ask for less, or raise the limit with --kvm-max-memory"


def test_where_nothing_is_reserved_there_is_nothing_to_take(admission):
    room = admission().room("web", ONE)
    room.take_reserved()
    assert room.granted == NOTHING


def _not_yet():
    raise NotYet("nothing")
