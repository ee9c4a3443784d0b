"""Who is at work, and whose undo_log hears of it."""

from __future__ import annotations

import logging
import os
import signal
import threading

import pytest

from pytest_kvm.errors import BootFailed, GuestGone, SnapshotFailed, SshUnavailable, SwitchFailed
from pytest_kvm.provision.undo_log import Owner
from tests.fakes_state import FakeGuest, FakeSegment, FakeState, end


@pytest.fixture
def web(coordinator):
    return FakeGuest("web", coordinator)


def test_the_innermost_is_the_one_who_changes_a_guest(coordinator, web):
    test, fixture = Owner("test"), Owner("fixture")
    with coordinator.at_work(test):
        with coordinator.at_work(fixture):
            web.change("fixture")
        web.change("test")
    end(coordinator, test)
    with coordinator.at_work(Owner("next")):
        assert web.look() == ["fixture"]


def test_leaving_takes_along_whoever_worked_on_ones_behalf(coordinator):
    test, fixture = Owner("test"), Owner("fixture")
    coordinator.enter(test)
    coordinator.enter(fixture)
    coordinator.leave(test)
    assert coordinator.owner is None
    coordinator.leave(fixture)


def test_an_exception_ends_the_work(coordinator):
    with pytest.raises(RuntimeError), coordinator.at_work(Owner("fixture")):
        raise RuntimeError
    assert coordinator.owner is None


def test_a_look_between_tests_undoes_nothing(coordinator, web):
    with coordinator.at_work(test := Owner("test")):
        web.change("test")
    end(coordinator, test)
    assert web.look() == ["test"]
    assert web.state.done == []


def test_guests_are_kept_apart(coordinator, web):
    database = FakeGuest("database", coordinator)
    with coordinator.at_work(test := Owner("test")):
        web.change("test")
    end(coordinator, test)
    with coordinator.at_work(Owner("next")):
        database.look()
        assert web.state.done == []
        coordinator.settle([web])
    assert (web.state.done, database.state.done) == (["restore"], [])


def test_a_guest_that_is_forgotten_is_left_alone(coordinator, web):
    with coordinator.at_work(test := Owner("test")):
        web.change("test")
    end(coordinator, test)
    coordinator.forget(web)
    with coordinator.at_work(Owner("next")):
        coordinator.settle([web])
        assert web.look() == ["test"]


def test_losers_on_all_guests_the_last_first(coordinator, web):
    database = FakeGuest("database", coordinator)
    below, one, two = Owner("below"), Owner("one"), Owner("two")
    for owner, guests in ((below, [web, database]), (one, [web]), (two, [web, database])):
        with coordinator.at_work(owner):
            for guest in guests:
                guest.change(owner.name)
    assert coordinator.losers(below) == [two, one]
    assert coordinator.losers(two) == []


# ------------------------------------------------------------ guests on segments


def test_what_a_neighbour_changed_is_undone(coordinator, lab):
    client, _, server = lab
    with coordinator.at_work(test := Owner("test")):
        client.talk_to(server, "a request")
    end(coordinator, test)
    assert [guest.state.is_detached for guest in lab] == [True, False, True]
    with coordinator.at_work(Owner("next")):
        client.look()
    assert server.state.content == []
    assert [guest.state.done for guest in lab] == [["restore"], [], ["restore"]]
    assert not any(guest.state.is_detached for guest in lab)


def test_guests_that_no_frame_reached_are_not_reset(coordinator, lab):
    client, *others = lab
    for name in "abc":
        with coordinator.at_work(test := Owner(name)):
            client.change(name)
        end(coordinator, test)
    assert [guest.state.done for guest in others] == [[], []]


def test_what_a_fixture_did_to_a_neighbour_is_kept_and_saved_once(coordinator, lab):
    client, _, server = lab
    fixture = Owner("fixture")
    with coordinator.at_work(fixture):
        client.talk_to(server, "fixture")
    for name in "abc":
        with coordinator.at_work(test := Owner(name)):
            coordinator.settle(lab)
            client.talk_to(server, name)
            client.look()
            assert server.state.content == ["fixture", name]
        end(coordinator, test)
    assert server.state.done == ["take", "restore", "restore"]


def test_a_test_that_may_change_everything_saves_a_neighbour_once(coordinator, lab):
    client, _, server = lab
    with coordinator.at_work(Owner("fixture")):
        client.talk_to(server, "fixture")
    for name in "abc":
        with coordinator.at_work(test := Owner(name)):
            client.look()
        end(coordinator, test)
    assert server.state.done == ["take"]


def test_a_neighbour_that_cannot_be_saved_keeps_what_others_do_to_it(coordinator, lab, caplog):
    caplog.set_level(logging.INFO)
    client, _, server = lab
    with coordinator.at_work(Owner("fixture")):
        server.change("a process that is at work")
    server.state.refuses = "a process is at work"
    for _ in "ab":
        with coordinator.at_work(test := Owner("test")):
            client.talk_to(server, "test")
            client.look()
        end(coordinator, test)
    assert caplog.text.count("a process is at work") == 2, "it is tried once for each test"
    assert server.state.content == ["a process that is at work", "test", "test"]
    assert not server.state.is_detached


# ------------------------------------------------------------ faults of segments


def test_a_fault_changes_all_guests_that_the_segment_leads_to(coordinator, lab):
    client, router, _ = lab
    with coordinator.at_work(test := Owner("test")):
        coordinator.before_fault([client, router])
    end(coordinator, test)
    assert all(guest.state.is_detached for guest in lab)
    with coordinator.at_work(Owner("next")):
        coordinator.before_fault([client])
    assert [guest.state.done for guest in lab] == [["restore"]] * 3


def test_guests_are_reset_to_how_they_were_under_a_fixtures_fault(coordinator, lab):
    client, _, server = lab
    with coordinator.at_work(Owner("fixture")):
        coordinator.before_fault(lab)
    server.state.content.append("what the fault has done")
    for name in "ab":
        with coordinator.at_work(test := Owner(name)):
            client.talk_to(server, name)
            assert server.state.content == ["what the fault has done", name]
        end(coordinator, test)
    assert server.state.done == ["take", "restore"]


def test_a_fault_fails_nobody_whose_guest_cannot_be_saved(coordinator, lab):
    client, _, server = lab
    with coordinator.at_work(Owner("fixture")):
        server.change("a process that is at work")
    server.state.refuses = "a process is at work"
    with coordinator.at_work(test := Owner("test")):
        coordinator.before_fault(lab)
        client.talk_to(server, "test")
    end(coordinator, test)
    assert server.state.content == ["a process that is at work", "test"]


def test_a_fault_between_tests_is_undone_with_the_newest_change(coordinator, lab):
    with coordinator.at_work(test := Owner("test")):
        coordinator.before_fault(lab)
    coordinator.before_fault(lab)
    end(coordinator, test)
    with coordinator.at_work(Owner("next")):
        coordinator.settle(lab)
    assert [guest.state.done for guest in lab] == [["restore"]] * 3


# ------------------------------------------------------------ resets that fail


def test_tests_that_go_on_from_each_other_do_so_on_neighbours_too(coordinator, lab):
    client, _, server = lab
    for name in "ab":
        with coordinator.at_work(test := Owner(name, reset="never")):
            client.talk_to(server, name)
        end(coordinator, test)
    with coordinator.at_work(test := Owner("c")):
        client.talk_to(server, "c")
    end(coordinator, test)
    with coordinator.at_work(Owner("d")):
        assert server.look() == ["a", "b"]


def test_guests_are_reset_at_the_same_time(coordinator, lab, monkeypatch):
    with coordinator.at_work(test := Owner("test")):
        for guest in lab:
            guest.change("test")
    end(coordinator, test)
    together = threading.Barrier(len(lab), timeout=10)
    real = FakeState.restore

    def restore(state, point):
        together.wait()
        return real(state, point)

    monkeypatch.setattr(FakeState, "restore", restore)
    with coordinator.at_work(test := Owner("next")):
        coordinator.settle(lab)
        lab[0].change("next")
        lab[2].change("next")
    end(coordinator, test)
    together = threading.Barrier(2, timeout=10)
    with coordinator.at_work(Owner("last")):
        assert lab[1].look() == []
    assert [guest.state.content for guest in lab] == [[], [], []]


def test_a_reset_that_fails_is_raised_once_the_others_are_done(coordinator, lab, monkeypatch, caplog):
    with coordinator.at_work(test := Owner("test")):
        for guest in lab:
            guest.change("test")
    end(coordinator, test)
    real = FakeState.restore

    def restore(state, point):
        if state is lab[0].state:
            return real(state, point)
        raise SnapshotFailed("broken")

    monkeypatch.setattr(FakeState, "restore", restore)
    with coordinator.at_work(Owner("next")), pytest.raises(SnapshotFailed, match="broken"):
        coordinator.settle(lab)
    assert lab[0].state.content == []
    assert "another one failed at the same time: broken" in caplog.text
    assert [guest.state.is_detached for guest in lab] == [False, True, True]


@pytest.mark.parametrize("method", ["traffic", "detach"])
def test_a_switch_that_has_ended_does_not_fail_teardown(coordinator, lab, monkeypatch, method):
    def fail(state):
        raise SwitchFailed("the switch of this run has ended")

    with coordinator.at_work(test := Owner("test")):
        lab[0].talk_to(lab[1], "test")
        monkeypatch.setattr(FakeState, method, fail)
    end(coordinator, test)
    monkeypatch.undo()
    with coordinator.at_work(Owner("next")):
        assert lab[0].look() == []


@pytest.mark.parametrize(
    "error", [GuestGone("server has ended"), SshUnavailable("no sshd"), BootFailed("no")]
)
def test_a_neighbour_that_cannot_be_saved_for_any_reason_fails_nobody(coordinator, lab, monkeypatch, error):
    client, _, server = lab
    with coordinator.at_work(Owner("fixture")):
        server.change("power off")
    tries = []

    def take():
        tries.append("take")
        raise error

    monkeypatch.setattr(server.state, "take", take)
    with coordinator.at_work(Owner("test")):
        client.change("test")
        client.change("more")
    assert tries == ["take"]


def test_a_neighbour_that_cannot_be_put_back_stays_cut_off_and_fails_its_own_uses(
    coordinator, lab, monkeypatch, caplog
):
    client, _, server = lab
    with coordinator.at_work(test := Owner("a")):
        client.talk_to(server, "a")
    end(coordinator, test)

    def restore(point):
        raise SnapshotFailed("broken")

    monkeypatch.setattr(server.state, "restore", restore)
    for name in "bc":
        with coordinator.at_work(test := Owner(name)):
            coordinator.settle([client])
            client.change(name)
            client.change("more")
            assert server.state.is_detached
            with pytest.raises(SnapshotFailed, match="broken"):
                server.look()
        assert caplog.text.count(f"server stays cut off from {name}: broken") == 1
        end(coordinator, test)


def test_a_guest_that_joins_boots_among_guests_that_are_put_back(coordinator, lab):
    client, _, server = lab
    with coordinator.at_work(test := Owner("a")):
        client.talk_to(server, "a")
    end(coordinator, test)
    late = FakeGuest("late", coordinator)
    coordinator.forget(late)  # as a test's own guest, which is not reset
    FakeSegment(server, late)
    with coordinator.at_work(test := Owner("b")):
        coordinator.before_use(late)
        assert not server.state.is_detached
        late.talk_to(server, "a lease")
    end(coordinator, test)
    with coordinator.at_work(Owner("c")):
        assert server.look() == []


def test_a_frame_just_after_a_fixtures_setup_is_the_fixtures(coordinator, lab):
    client, _, server = lab
    with coordinator.at_work(Owner("fixture")):
        client.change("have it registered, and do not wait")
    server.state.frames += 1
    server.state.content.append("registered")
    for name in "ab":
        with coordinator.at_work(test := Owner(name)):
            coordinator.settle(lab)
            client.talk_to(server, name)
            assert server.state.content == ["registered", name]
        end(coordinator, test)


def test_frames_while_a_savepoint_is_taken_count(coordinator, lab, monkeypatch):
    client, _, server = lab
    with coordinator.at_work(Owner("fixture")):
        server.change("fixture")
    real = server.state.take

    def take():
        point = real()
        server.state.frames += 1
        server.state.content.append("a frame of the test")
        return point

    monkeypatch.setattr(server.state, "take", take)
    with coordinator.at_work(test := Owner("a")):
        client.change("a")
    end(coordinator, test)
    with coordinator.at_work(Owner("b")):
        assert server.look() == ["fixture"]


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0)])
def test_what_is_sent_while_guests_are_cut_off_one_by_one_is_undone(coordinator, monkeypatch, order):
    names = ("client", "router", "server")
    made = {names[index]: FakeGuest(names[index], coordinator) for index in order}
    client, router, server = (made[name] for name in names)
    FakeSegment(client, router)
    FakeSegment(router, server)

    def relaying(sender, receiver, detach):
        def relay():
            if not receiver.state.is_detached:
                receiver.state.frames += 1
                receiver.state.content.append(f"from {sender.name}")
            detach()

        monkeypatch.setattr(sender.state, "detach", relay)

    relaying(client, router, client.state.detach)
    relaying(router, server, router.state.detach)
    with coordinator.at_work(test := Owner("a")):
        client.change("a")
    end(coordinator, test)
    assert [guest.state.is_detached for guest in (client, router, server)] == [True, True, True]
    with coordinator.at_work(Owner("b")):
        client.look()
        assert server.state.content == router.state.content == []


def test_an_unreached_neighbour_is_not_reset_for_the_teardown_of_a_fixture_that_ends_with_a_test(
    coordinator, lab
):
    client, _, server = lab
    test, fixture = Owner("test"), Owner("fixture set up in its midst")
    coordinator.enter(test)
    client.change("test")
    with coordinator.at_work(fixture):
        client.change("fixture")
    client.change("more")
    test.ended = True
    assert coordinator.losers(test) == [fixture]
    with coordinator.at_work(fixture):
        client.look()
    assert server.state.done == []


def test_tests_that_keep_changes_cost_no_savepoint_of_an_unreached_neighbour(coordinator, lab):
    client, _, server = lab
    with coordinator.at_work(test := Owner("a", reset="never")):
        client.change("a")
    end(coordinator, test)
    with coordinator.at_work(Owner("b")):
        client.change("b")
    assert server.state.done == []


def test_uses_after_the_first_ask_the_switch_nothing(coordinator, lab, monkeypatch):
    client, *_ = lab
    asked = []
    with coordinator.at_work(Owner("test")):
        client.change("first")
        for guest in lab:
            monkeypatch.setattr(guest.state, "traffic", lambda: asked.append("traffic"))
        client.change("second")
    assert asked == []


def test_ctrl_c_waits_for_no_reset(coordinator, lab, monkeypatch):
    with coordinator.at_work(test := Owner("a")):
        for guest in lab:
            guest.change("a")
    end(coordinator, test)
    begun, go_on = threading.Event(), threading.Event()

    def restore(point):
        begun.set()
        go_on.wait()
        raise SnapshotFailed("the guest was removed")

    for guest in lab:
        monkeypatch.setattr(guest.state, "restore", restore)

    def interrupt():
        begun.wait()
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt).start()
    coordinator.enter(test := Owner("b"))
    with pytest.raises(KeyboardInterrupt):
        coordinator.settle(lab)
    coordinator.leave(test)
    assert coordinator.losers(test) == []
    end(coordinator, test)
    go_on.set()


def be_reached_after_a_test(coordinator, guest):
    """Have a frame of nobody come to a guest once a test has ended that only had it reset."""
    with coordinator.at_work(test := Owner("second")):
        coordinator.settle([guest])
    end(coordinator, test)
    guest.state.frames += 1


@pytest.mark.parametrize(("refuses", "left"), [("", ["nobody"]), ("a raw disk", [])])
def test_frames_of_nobody_are_kept_if_a_savepoint_can_be_taken(coordinator, web, refuses, left):
    with coordinator.at_work(test := Owner("first")):
        web.change("first")
    end(coordinator, test)
    be_reached_after_a_test(coordinator, web)
    web.state.content.append("nobody")
    web.state.refuses = refuses
    with coordinator.at_work(test := Owner("third")):
        web.change("third")
    end(coordinator, test)
    with coordinator.at_work(Owner("last")):
        assert web.look() == left


def test_a_point_that_is_still_needed_is_kept_when_no_other_can_be_taken(coordinator, web):
    with coordinator.at_work(Owner("fixture")):
        web.change("fixture")
    with coordinator.at_work(test := Owner("first")):
        web.change("first")
    end(coordinator, test)
    be_reached_after_a_test(coordinator, web)
    web.state.refuses = "a process is at work"
    with coordinator.at_work(test := Owner("third")):
        web.change("third")
    end(coordinator, test)
    with coordinator.at_work(Owner("last")):
        assert web.look() == ["fixture"]


def test_a_guest_is_new_until_somebody_else_has_changed_it(coordinator, web):
    with coordinator.at_work(Owner("fixture forming")):
        web.change("formed")
        assert coordinator.why_not_new(web) == ""
        with coordinator.at_work(Owner("fixture inner")):
            assert coordinator.why_not_new(web) == "web was changed by fixture forming before"


def test_a_guest_that_was_used_between_tests_is_not_new(coordinator, web):
    web.change("between tests")
    with coordinator.at_work(Owner("fixture forming")):
        web.change("formed")
        assert coordinator.why_not_new(web) == "web was changed by use or by frames before"


def test_a_guest_that_a_test_without_resets_has_changed_is_not_new(coordinator, web):
    with coordinator.at_work(never := Owner("never", reset="never")):
        web.change("for good")
    end(coordinator, never)
    with coordinator.at_work(Owner("fixture forming")):
        web.change("formed")
        assert coordinator.why_not_new(web) == "web was changed by use or by frames before"


def test_a_guest_that_is_never_reset_is_never_known_to_be_new(coordinator, web):
    assert coordinator.why_not_new(web) == "web is not reset"
    with coordinator.at_work(Owner("test", reset="never")):
        assert coordinator.why_not_new(web) == "web is not reset"
    coordinator.forget(web)
    with coordinator.at_work(Owner("test")):
        assert coordinator.why_not_new(web) == "web is not reset"


def test_what_an_ended_owner_did_counts_until_it_is_undone(coordinator, web):
    with coordinator.at_work(test := Owner("test")):
        web.change("tested")
    end(coordinator, test)
    with coordinator.at_work(Owner("fixture forming")):
        assert coordinator.why_not_new(web) == "web was changed by test before"
        web.look()
        assert coordinator.why_not_new(web) == ""
