"""Guests that change each other are saved and put back together."""

from __future__ import annotations

import logging

import pytest

from pytest_kvm.errors import SnapshotFailed, SwitchFailed
from pytest_kvm.provision import reset_coordinator
from pytest_kvm.provision.joint_reset import make_ready
from pytest_kvm.provision.undo_log import Owner
from tests.fakes_state import FakeGuest, FakeSegment, FakeState, end


@pytest.fixture
def moments(lab, monkeypatch):
    """Return the savepoints and restores that are made, each with the guests that take part."""
    names = {guest.state: guest.name for guest in lab}
    made = []

    def record(what, real):
        def do(state, parts):
            states = [part[0] if what == "restore" else part for part in parts]
            made.append((what, sorted(names[each] for each in states)))
            return real(state, parts)

        return do

    monkeypatch.setattr(FakeState, "take_all", record("take", FakeState.take_all))
    monkeypatch.setattr(FakeState, "restore_all", record("restore", FakeState.restore_all))
    return made


def chat(lab):
    """Have each of the guests be told something by its neighbours, behind the back of all owners."""
    for guest in lab:
        guest.state.frames += 1
        guest.state.frames_told += 1
        guest.state.content.append("chat")


def form(coordinator, lab):
    with coordinator.at_work(Owner("fixture")):
        for guest in lab:
            guest.change("formed")


def test_a_cluster_is_saved_and_put_back_at_one_moment(coordinator, lab, moments):
    form(coordinator, lab)
    for name in "abc":
        with coordinator.at_work(test := Owner(name)):
            coordinator.settle(lab)
            lab[0].change(name)
            lab[0].talk_to(lab[1], name)
            lab[1].talk_to(lab[2], name)
        end(coordinator, test)
    everybody = ["client", "router", "server"]
    assert moments == [("take", everybody), ("restore", everybody), ("restore", everybody)]


def test_a_cluster_that_chats_by_itself_is_as_it_was_formed_in_each_test(coordinator, lab, moments):
    form(coordinator, lab)
    for name in "abc":
        with coordinator.at_work(test := Owner(name)):
            coordinator.settle(lab)
            assert [guest.state.content for guest in lab] == [["formed"]] * 3
            chat(lab)
            lab[0].change(name)
            chat(lab)
        end(coordinator, test)
    assert [what for what, _ in moments] == ["take", "restore", "restore"]


def test_a_guest_that_only_told_others_is_saved_with_them(coordinator, lab, moments):
    _, router, server = lab
    with coordinator.at_work(Owner("fixture")):
        router.change("fixture")
        server.state.frames_told += 1
    with coordinator.at_work(Owner("test")):
        router.change("test")
    assert moments == [("take", ["router", "server"])]


def test_who_tells_others_something_just_before_is_saved_once_more_with_them(
    coordinator, lab, moments, monkeypatch
):
    _, router, server = lab
    with coordinator.at_work(Owner("fixture")):
        router.change("fixture")
    real = router.state.take

    def take():
        server.state.frames_told = 1
        return real()

    monkeypatch.setattr(router.state, "take", take)
    with coordinator.at_work(Owner("test")):
        router.change("test")
    assert moments == [("take", ["router"]), ("take", ["router", "server"])]
    assert (router.state.points, server.state.points) == (2, 1)
    with coordinator.at_work(test := Owner("more")):
        router.change("more")
    end(coordinator, test)


def test_of_guests_that_are_saved_together_one_may_be_refused(coordinator, lab, caplog):
    caplog.set_level(logging.INFO)
    client, router, server = lab
    form(coordinator, lab)
    server.state.refuses = "a process is at work"
    with coordinator.at_work(test := Owner("test")):
        client.change("test")
        router.change("test")
    end(coordinator, test)
    with coordinator.at_work(Owner("next")):
        assert client.look() == router.look() == ["formed"]
        with pytest.raises(SnapshotFailed, match="server: no savepoint between what fixture did and next"):
            server.look()
    assert "server keeps what its neighbours do to it" in caplog.text


# ------------------------------------------------------------ what comes at the last moment


def when_it_is_saved(guest, monkeypatch, action):
    """Have something happen in the last moment before a guest is saved, the first time."""
    real, done = guest.state.take, []

    def take():
        if not done:
            done.append(action())
        return real()

    monkeypatch.setattr(guest.state, "take", take)


def tell(sender, receiver, text):
    """Have a guest tell another something by itself."""
    sender.state.frames_told += 1
    receiver.state.frames += 1
    receiver.state.content.append(text)


def test_what_comes_just_before_a_savepoint_goes_with_the_fixture(coordinator, lab, monkeypatch):
    client, router, server = lab
    fixture = Owner("fixture")
    with coordinator.at_work(fixture):
        client.change("fixture")
    server.state.frames_told += 1
    when_it_is_saved(server, monkeypatch, lambda: tell(router, server, "of the fixture"))
    with coordinator.at_work(test := Owner("test")):
        client.change("test")
        server.change("test")
    end(coordinator, test)
    with coordinator.at_work(test := Owner("next")):
        assert server.look() == ["of the fixture"]
    end(coordinator, test)
    end(coordinator, fixture)
    with coordinator.at_work(Owner("after the fixture")):
        assert client.look() == server.look() == []


def test_who_is_saved_once_more_has_told_and_heard_nothing_since(coordinator, lab, monkeypatch):
    client, _, server = lab
    with coordinator.at_work(Owner("fixture")):
        client.change("fixture")
    when_it_is_saved(client, monkeypatch, lambda: tell(server, client, "chat"))
    for name in ("test", "next"):
        with coordinator.at_work(test := Owner(name)):
            coordinator.settle(lab)
        end(coordinator, test)
    assert client.state.done == ["take", "take"]


@pytest.mark.parametrize("chats_at", [1, 2])
def test_the_second_savepoint_may_be_refused(coordinator, lab, monkeypatch, caplog, chats_at):
    caplog.set_level(logging.INFO)
    client, router, server = lab
    with coordinator.at_work(Owner("fixture")):
        client.change("fixture")
        router.change("fixture")

    real, calls = client.state.take, []

    def take():
        point = real()
        calls.append("take")
        if len(calls) == chats_at:
            client.state.content.append("said it")
            tell(client, router, "heard it")
        server.state.frames_told += 1
        if len(calls) == 2:
            raise SnapshotFailed("the disk is full")
        return point

    monkeypatch.setattr(client.state, "take", take)
    with coordinator.at_work(test := Owner("test")):
        router.change("test")
    monkeypatch.undo()
    assert calls == ["take"] * 2
    end(coordinator, test)
    with coordinator.at_work(Owner("next")):
        router.look()
    assert "heard it" not in router.state.content or "said it" in client.state.content
    assert "client keeps what its neighbours do to it" in caplog.text


# ------------------------------------------------------------ each guest once


@pytest.fixture
def groups(monkeypatch):
    """Return the groups of guests that are prepared, each group by a thread of its own."""
    made = []

    def record(uses, owner):
        made.append({undo_log.guest for undo_log in uses})
        make_ready(uses, owner)

    monkeypatch.setattr(reset_coordinator, "make_ready", record)
    return made


def test_guests_that_are_never_reset_belong_to_the_group_of_their_neighbours(coordinator, groups):
    web, one, two, alone = (FakeGuest(name, coordinator) for name in ("web", "one", "two", "alone"))
    with coordinator.at_work(test := Owner("first")):
        web.change("first")
    end(coordinator, test)
    FakeSegment(web, one, two)
    for each in (one, two):
        coordinator.forget(each)
    groups.clear()
    with coordinator.at_work(Owner("second")):
        coordinator.settle([one, web, two, alone])
    assert groups == [{"web"}, {"alone"}]


def test_a_guest_whose_boot_failed_belongs_to_the_group_of_its_neighbours(coordinator, groups):
    web, broken = FakeGuest("web", coordinator), FakeGuest("broken", coordinator)
    FakeSegment(web, broken)
    broken.state = "failed"
    with coordinator.at_work(Owner("test")):
        coordinator.settle([web, broken])
    assert groups == [{"web", "broken"}]


# ------------------------------------------------------------ a fixture in the midst of a test


def run_test_with_fixture(coordinator, lab, *, uses_it_again):
    """Run a test that changes the server, and a fixture in its midst that changes the client; return that."""
    client, _, server = lab
    fixture = Owner("fixture set up in its midst")
    with coordinator.at_work(test := Owner("test")):
        server.change("test")
        with coordinator.at_work(fixture):
            client.change("fixture")
        if uses_it_again:
            server.change("test again")
    end(coordinator, test)
    return fixture


def test_a_fixture_that_changed_nothing_is_not_undone_early(coordinator, lab, caplog):
    run_test_with_fixture(coordinator, lab, uses_it_again=False)
    with coordinator.at_work(Owner("next")):
        assert lab[-1].look() == []
    assert "undone early" not in caplog.text


@pytest.mark.parametrize("uses_it_again", [False, True])
def test_a_fixture_of_the_midst_sees_nothing_of_the_test_in_its_teardown(coordinator, lab, uses_it_again):
    client, _, server = lab
    fixture = run_test_with_fixture(coordinator, lab, uses_it_again=uses_it_again)
    with coordinator.at_work(fixture):
        client.change("teardown")
        assert not server.state.is_detached
        assert client.talk_to(server, "bye") == []


# ------------------------------------------------------------ failures


def test_what_was_saved_is_known_also_if_the_switch_ends(coordinator, lab, monkeypatch):
    def take():
        raise SwitchFailed("it has ended")

    form(coordinator, lab)
    with monkeypatch.context() as patch, coordinator.at_work(test := Owner("test")):
        patch.setattr(lab[0].state, "take", take)
        with pytest.raises(SwitchFailed):
            lab[0].change("x")
    end(coordinator, test)
    for name in "ab":
        with coordinator.at_work(fixture := Owner(f"fixture of {name}")):
            for guest in lab:
                guest.change("fixture")
        end(coordinator, fixture)
        with coordinator.at_work(test := Owner(name)):
            for guest in lab:
                guest.change("x")
        end(coordinator, test)
    assert [guest.state.points for guest in lab] == [1, 1, 1]


def test_nothing_counts_as_undone_early_before_it_is_undone(coordinator, lab, monkeypatch, caplog):
    _, _, server = lab
    test, fixture = Owner("test"), Owner("fixture")
    with coordinator.at_work(test):
        server.change("test")
        with coordinator.at_work(fixture):
            server.change("fixture")
    end(coordinator, test)

    def restore(_point):
        raise SnapshotFailed("it is broken")

    with monkeypatch.context() as patch:
        patch.setattr(server.state, "restore", restore)
        with coordinator.at_work(Owner("unlucky")), pytest.raises(SnapshotFailed):
            server.change("x")
    assert "undone early" not in caplog.text
    with coordinator.at_work(Owner("lucky")):
        server.change("x")
    assert caplog.text.count("server: what fixture did is undone early") == 1
