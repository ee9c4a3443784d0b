"""Savepoints, without a guest: what is refused, in which order things end."""

from __future__ import annotations

import itertools
import shutil
from concurrent.futures import Future

import pytest

from pytest_kvm.errors import (
    DomainFailed,
    GuestError,
    GuestGone,
    HostError,
    SavepointGone,
    SavepointRefused,
    SnapshotFailed,
    SwitchFailed,
)
from pytest_kvm.handles.callbacks import Callbacks
from pytest_kvm.handles.guest import Guest, replace_machine
from pytest_kvm.hypervisor.protocol import DomainState
from pytest_kvm.machine import savepoints
from pytest_kvm.machine.renewal import Prestarted
from tests.fakes import FakeDomain, FakeShell, fake_machine

PRESTARTED = Prestarted(7, 8)


class Thing:
    """Something that is open in the guest."""

    def __init__(self, name, events):
        self._name = name
        self._events = events

    def close(self):
        self._events.append(f"close {self._name}")

    def __repr__(self):
        return f"<{self._name}>"


@pytest.fixture
def events(domain, shell, monkeypatch):
    """What is done, in order, by domain, shell and renewal alike."""
    monkeypatch.setattr(shell, "close", lambda: domain.done.append("hang up"))
    monkeypatch.setattr(
        savepoints,
        "renew",
        lambda _machine, prestarted=None: domain.done.append(f"renew {prestarted and prestarted.pid}"),
    )
    monkeypatch.setattr(savepoints, "prestart", lambda _machine: domain.done.append("prestart") or PRESTARTED)
    return domain.done


@pytest.fixture
def guest(machine):
    boot = Future()
    boot.set_result(machine)
    uses = []
    guest = Guest("web", boot, callbacks=Callbacks(before_use=lambda guest: uses.append("use")))
    guest.uses = uses
    return guest


def test_taking_one_leaves_a_helper_in_it_and_none_behind(machine, events):
    savepoints.take([machine], "s")
    assert events == ["prestart", "take s", "renew 7"]


def test_without_a_helper_the_clock_is_put_right_as_well(machine, events, monkeypatch):
    monkeypatch.setattr(savepoints, "prestart", lambda _machine: None)
    savepoints.take([machine], "s")
    assert events == ["take s", "renew None"]


def test_a_helper_is_not_left_behind_where_nothing_was_taken(machine, events, monkeypatch):
    def failing(_name):
        raise SnapshotFailed("no room")

    monkeypatch.setattr(machine.domain, "take_snapshot", failing)
    with pytest.raises(SnapshotFailed, match="no room"):
        savepoints.take([machine], "s")
    assert events == ["prestart", "renew 7"]


def test_restoring_ends_what_came_later_and_renews(machine, events):
    savepoints.take([machine], "s")
    events.clear()
    machine.open_resources.register(lambda: [Thing("one", events), Thing("two", events)])
    savepoints.restore([(machine, "s")])
    assert events == [
        *("detach", "drop frames", "load s", "close one", "close two", "hang up"),
        *("attach", "resume", "renew 7"),
    ]


def test_what_is_at_work_is_named(machine, shell, events):
    shell.processes = (Thing("a process", events),)
    machine.open_resources.register(lambda: [Thing("a port", events)])
    with pytest.raises(SavepointRefused, match="at work in the guest: <a process>, <a port>"):
        savepoints.take([machine], "s")
    assert events == []


def test_a_forwarded_port_is_at_work_while_it_is_open(machine, events, monkeypatch):
    monkeypatch.setattr(type(machine.forwards), "open", ("<Forward 127.0.0.1:40001>",))
    with pytest.raises(SavepointRefused, match=r"40001"):
        savepoints.take([machine], "s")


def test_a_paused_guest_is_renewed_when_it_goes_on(machine, guest, events):
    machine.domain.suspend()
    savepoints.take([machine], "s")
    savepoints.restore([(machine, "s")])
    assert events == ["suspend", "take s", "detach", "drop frames", "load s", "hang up", "attach"]
    guest.resume()
    guest.pause()
    guest.resume()
    assert events[7:] == ["resume", "renew None", "suspend", "resume"]


def test_a_guest_that_ended_has_none(machine, domain, events):
    savepoints.take([machine], "s")
    domain.end("guest shutdown")
    events.clear()
    with pytest.raises(GuestGone, match="guest shutdown"):
        savepoints.take([machine], "t")
    with pytest.raises(SavepointGone, match="guest shutdown"):
        savepoints.restore([(machine, "s")])
    savepoints.drop([machine], "s")
    assert events == []


def test_by_hand_it_is_a_value_and_each_call_that_changes_the_guest_a_use(guest, events):
    first, second = guest.savepoint(), guest.savepoint("before the upgrade")
    assert repr(second) == "<Savepoint before the upgrade of web>"
    assert first.name.startswith("savepoint ")
    first.restore()
    assert guest.uses == ["use"] * 3
    second.drop()
    second.drop()
    assert repr(second) == "<Savepoint before the upgrade of web, dropped>"
    assert guest.uses == ["use"] * 3
    verbs = [event.split()[0] for event in events]
    restore = ["detach", "drop", "load", "hang", "attach", "resume", "renew"]
    assert verbs == ["prestart", "take", "renew"] * 2 + [*restore, "drop"]
    with pytest.raises(SavepointGone, match="before the upgrade was dropped"):
        second.restore()


def test_a_block_ends_with_restore_and_drop(guest, events):
    with guest.savepoint():
        events.clear()
    assert events[:3] == ["detach", "drop frames", f"load {events[-1].removeprefix('drop ')}"]


def test_one_that_was_dropped_in_its_block_stays_dropped(guest, events):
    with guest.savepoint() as point:
        point.drop()
        events.clear()
    assert events == []


def test_a_block_that_fails_on_a_guest_that_died_tells_its_own_failure(guest, domain, events):
    with pytest.raises(ZeroDivisionError), guest.savepoint():
        fail_with(domain)


def test_what_cannot_be_dropped_does_not_hide_why_a_block_failed(guest, domain, events, caplog):
    def refuse(_name):
        raise SnapshotFailed("cannot be deleted")

    domain.drop_snapshot = refuse
    with pytest.raises(ZeroDivisionError), guest.savepoint("of the block"):
        raise ZeroDivisionError
    assert "of the block" in caplog.text
    with pytest.raises(SnapshotFailed, match="cannot be deleted"), guest.savepoint():
        pass


def fail_with(domain):
    domain.end("destroyed")
    raise ZeroDivisionError


def test_a_block_on_a_guest_that_died_quietly_says_so(guest, domain, events):
    with pytest.raises(SavepointGone), guest.savepoint():
        domain.end("destroyed")


def test_one_of_a_former_machine_is_gone(guest, events, tmp_path):
    point = guest.savepoint()
    (tmp_path / "other").mkdir()
    boot = Future()
    boot.set_result(fake_machine(tmp_path / "other", domain=FakeDomain(), shell=FakeShell()))
    replace_machine(guest, boot)
    with pytest.raises(SavepointGone, match="was reset, or switched off, meanwhile"):
        point.restore()
    point.drop()
    assert events[-1].startswith("drop hand-")


# ------------------------------------------------------------ several guests


@pytest.fixture
def pair(tmp_path, events, monkeypatch):
    """Return two machines that write what is done to either into one list, with the machine's name."""
    machines = []
    for name in ("db", "web"):
        folder = tmp_path / name
        folder.mkdir()
        domain = FakeDomain(name)
        domain.done = Named(name, events)
        machines.append(fake_machine(folder, domain=domain, shell=FakeShell()))
    monkeypatch.setattr(
        savepoints, "renew", lambda machine, prestarted=None: machine.domain.done.append("renew")
    )
    monkeypatch.setattr(savepoints, "prestart", lambda machine: machine.domain.done.append("prestart"))
    return machines


class Named(list[str]):
    """A list that appends to another one, with a name."""

    def __init__(self, name, events):
        self._name, self._events = name, events

    def append(self, event):
        self._events.append(f"{self._name} {event}")


def steps(events):
    """Return what was done, in order; what is done at the same time has the order of the alphabet."""
    verbs = [event.split()[1] for event in events]
    blocks = itertools.groupby(zip(verbs, events, strict=True), key=lambda each: each[0])
    return [(verb, sorted(event.split()[0] for _, event in block)) for verb, block in blocks]


def test_no_frame_passes_from_before_the_first_is_saved_until_the_last_is(pair, events):
    savepoints.take(pair, "s")
    order = ["prestart", "detach", "suspend", "take", "attach", "resume", "renew"]
    assert steps(events) == [(step, ["db", "web"]) for step in order]


def test_one_that_is_paused_stays_so(pair, events):
    pair[0].domain.suspend()
    events.clear()
    savepoints.take(pair, "s")
    paused = [event for event in events if event.startswith("db")]
    assert paused == ["db detach", "db take s", "db attach"]
    events.clear()
    savepoints.restore([(machine, "s") for machine in pair])
    assert [event for event in events if "resume" in event or "renew" in event] == [
        "web resume",
        "web renew",
    ]
    assert [machine.renewal_due.is_set() for machine in pair] == [True, False]


def test_all_are_loaded_before_one_goes_on(pair, events):
    savepoints.take(pair, "s")
    events.clear()
    savepoints.restore([(machine, "s") for machine in pair])
    done = [verb for verb, _ in steps(events)]
    assert done[0] == "detach"
    assert done[-3:] == ["attach", "resume", "renew"]
    assert {event.split()[1] for event in events[2:-6]} == {"drop", "load"}


def failing(machine, method, error):
    """Have a step of one machine fail."""

    def fail(*_):
        raise error

    setattr(machine.links if method in {"attach", "detach"} else machine.domain, method, fail)


def test_if_one_cannot_be_saved_none_is_and_all_go_on(pair, events):
    failing(pair[1], "take_snapshot", SnapshotFailed("no room"))
    with pytest.raises(SnapshotFailed, match="no room"):
        savepoints.take(pair, "s")
    assert [machine.savepoints for machine in pair] == [{}, {}]
    assert steps(events)[-4:] == [
        *((step, ["db", "web"]) for step in ("attach", "resume", "renew")),
        ("drop", ["db"]),
    ]


def test_what_is_at_work_in_one_is_found_before_anything_is_done(pair, events):
    pair[1].open_resources.register(lambda: [Thing("a port", events)])
    with pytest.raises(SavepointRefused, match=r"web: no savepoint, .*<a port>"):
        savepoints.take(pair, "s")
    assert events == []


def test_if_one_has_other_devices_none_is_put_back(pair, events):
    savepoints.take(pair, "s")
    events.clear()
    pair[1].domain.devices_changed = True
    with pytest.raises(SavepointRefused, match="web: cannot go back to s"):
        savepoints.restore([(machine, "s") for machine in pair])
    assert events == []


def test_if_the_files_of_one_are_gone_none_is_put_back(pair, events):
    savepoints.take(pair, "s")
    events.clear()
    shutil.rmtree(pair[1].folder)
    with pytest.raises(HostError, match="the folder of web, .*, is gone: somebody has removed it"):
        savepoints.restore([(machine, "s") for machine in pair])
    assert events == []


def test_one_that_has_ended_meanwhile_does_not_keep_the_others_from_going_on(pair, events):
    def end(_name):
        pair[1].domain.end("was killed")
        raise SnapshotFailed("QEMU has ended")

    pair[1].domain.take_snapshot = end
    with pytest.raises(SnapshotFailed, match="QEMU has ended"):
        savepoints.take(pair, "s")
    db = [event for event in events if event.startswith("db")]
    assert [each for each in db if each != "db drop s"][-3:] == ["db attach", "db resume", "db renew"]


@pytest.mark.parametrize(("method", "error"), [("detach", SwitchFailed), ("suspend", DomainFailed)])
def test_what_fails_half_done_leaves_no_guest_detached_or_paused(pair, events, method, error):
    web = pair[1]
    holder = web.links if method == "detach" else web.domain
    do = getattr(holder, method)

    def do_half():
        do()
        raise error("no answer")

    setattr(holder, method, do_half)
    with pytest.raises(error, match="no answer"):
        savepoints.take(pair, "s")
    assert sorted(event for event in events if "attach" in event) == ["db attach", "web attach"]
    assert web.domain.state() is DomainState.RUNNING


def test_what_cannot_be_dropped_does_not_hide_why_there_is_none(pair, events, monkeypatch, caplog):
    def fail(machine, prestarted=None):
        if machine is pair[1]:
            raise GuestError("no python3")

    monkeypatch.setattr(savepoints, "renew", fail)
    failing(pair[1], "drop_snapshot", SnapshotFailed("cannot be deleted"))
    with pytest.raises(GuestError, match="no python3"):
        savepoints.take(pair, "s")
    assert [machine.savepoints for machine in pair] == [{}, {}]
    assert "cannot be deleted" in caplog.text
    assert events[-1] == "db drop s"


def test_those_that_cannot_be_saved_leave_a_savepoint_of_the_others(pair, events):
    failing(pair[1], "take_snapshot", SnapshotFailed("no room"))
    none, failure = savepoints.take_possible(pair, "s")
    assert none is None
    assert str(failure) == "no room"
    assert [list(machine.savepoints) for machine in pair] == [["s"], []]


@pytest.mark.parametrize(("method", "error"), [("detach", SwitchFailed), ("suspend", DomainFailed)])
def test_what_fails_before_guests_stand_still_is_told_as_it_is(pair, events, method, error):
    failing(pair[1], method, error("it has ended"))
    with pytest.raises(error, match="it has ended"):
        savepoints.take(pair, "s")
    assert {machine.domain.state() for machine in pair} == {DomainState.RUNNING}


def test_if_a_clock_cannot_be_set_there_is_no_savepoint(pair, events, monkeypatch):
    def fail(machine, prestarted=None):
        raise GuestError("no python3")

    monkeypatch.setattr(savepoints, "renew", fail)
    with pytest.raises(GuestError, match="no python3"):
        savepoints.take(pair, "s")
    assert [machine.savepoints for machine in pair] == [{}, {}]
    assert sorted(event for event in events if "drop" in event) == ["db drop s", "web drop s"]


def test_if_one_cannot_be_loaded_the_others_go_on_from_the_savepoint(pair, events):
    savepoints.take(pair, "s")
    events.clear()
    failing(pair[1], "load_snapshot", SnapshotFailed("cannot be read"))
    with pytest.raises(SnapshotFailed, match="cannot be read"):
        savepoints.restore([(machine, "s") for machine in pair])
    db = [event.split(" ", 1)[1] for event in events if event.startswith("db")]
    assert db == ["detach", "drop frames", "load s", "attach", "resume", "renew"]
    assert [event for event in events if event.startswith("web")] == ["web detach", "web drop frames"]


def test_if_one_cannot_be_detached_none_is_put_back(pair, events):
    savepoints.take(pair, "s")
    events.clear()
    failing(pair[1], "detach", SwitchFailed("no answer"))
    with pytest.raises(SwitchFailed, match="no answer"):
        savepoints.restore([(machine, "s") for machine in pair])
    assert sorted(events) == ["db attach", "db detach", "web attach"]


def test_one_that_cannot_be_attached_runs(pair, events):
    savepoints.take(pair, "s")
    failing(pair[1], "attach", SwitchFailed("no answer"))
    with pytest.raises(SwitchFailed, match="no answer"):
        savepoints.restore([(machine, "s") for machine in pair])
    assert {machine.domain.state() for machine in pair} == {DomainState.RUNNING}


def test_of_those_that_can_be_put_back_another_stays_cut_off(pair, events):
    savepoints.take(pair, "s")
    events.clear()
    pair[1].domain.devices_changed = True
    none, failure = savepoints.restore_possible([(machine, "s") for machine in pair])
    assert none is None
    assert isinstance(failure, SavepointRefused)
    assert [event for event in events if event.startswith("web")] == ["web detach"]


@pytest.mark.parametrize("is_refused", [False, True])
def test_cables_that_are_unplugged_are_set_again(pair, is_refused):
    web = pair[1]
    savepoints.take([web], "s")
    orders = []
    web.domain.qmp = lambda *order: orders.append(order)
    web.carriers.set(web.domain, "card", on=False)
    orders.clear()
    if is_refused:
        failing(web, "load_snapshot", SavepointRefused("other devices"))
    savepoints.restore_possible([(web, "s")])
    assert orders == [("set_link", {"name": "card", "up": False})]


@pytest.mark.parametrize("runs", [True, False])
def test_one_whose_devices_change_just_before_it_is_loaded_goes_on_as_it_was(pair, events, runs):
    savepoints.take(pair, "s")
    web = pair[1]
    if not runs:
        web.domain.suspend()
    events.clear()

    def refuse(_name):
        web.domain.suspend()
        raise SavepointRefused("web: other devices")

    web.domain.load_snapshot = refuse
    with pytest.raises(SavepointRefused, match="other devices"):
        savepoints.restore([(machine, "s") for machine in pair])
    done = [event.split(" ", 1)[1] for event in events if event.startswith("web")]
    assert done == ["detach", "drop frames", "suspend", "attach"] + ["resume"] * runs
    assert pair[0].domain.state() is DomainState.RUNNING
    assert min(events.index("db resume"), len(events)) > events.index("web suspend")


def test_a_reset_drops_what_tests_have_taken_since(pair):
    [web, _] = pair
    for name, by_hand in (("hand-1", True), ("base", False), ("hand-2", True), ("later", False)):
        savepoints.take([web], name, by_hand=by_hand)
    savepoints.drop_later(web, "base")
    assert list(web.savepoints) == ["hand-1", "base", "later"]


def test_a_reset_is_done_also_if_their_space_cannot_be_freed(pair, caplog):
    [web, _] = pair
    savepoints.take([web], "base")
    savepoints.take([web], "hand-1", by_hand=True)
    failing(web, "drop_snapshot", SnapshotFailed("cannot be deleted"))
    savepoints.drop_later(web, "base")
    assert list(web.savepoints) == ["base"]
    assert "its disks keep the savepoint hand-1: cannot be deleted" in caplog.text


def test_one_that_a_reset_has_dropped_is_gone(guest, events):
    savepoints.take([guest.machine], "base")
    point = guest.savepoint()
    savepoints.drop_later(guest.machine, "base")
    events.clear()
    with pytest.raises(SavepointGone, match="was reset, or switched off, meanwhile"):
        point.restore()
    point.drop()
    assert events == []
