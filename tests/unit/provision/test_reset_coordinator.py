"""Who is at work, and whose undo_log hears of it."""

from __future__ import annotations

import pytest

from pytest_kvm.provision.undo_log import Owner, ResetCoordinator
from tests.fakes_state import FakeGuest


@pytest.fixture
def coordinator():
    return ResetCoordinator()


@pytest.fixture
def web(coordinator):
    return FakeGuest("web", coordinator)


def test_the_innermost_is_the_one_who_changes_a_guest(coordinator, web):
    test, fixture = Owner("test"), Owner("fixture")
    with coordinator.at_work(test):
        with coordinator.at_work(fixture):
            web.change("fixture")
        web.change("test")
    test.ended = True
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
    test.ended = True
    assert web.look() == ["test"]
    assert web.state.done == []


def test_guests_are_kept_apart(coordinator, web):
    database = FakeGuest("database", coordinator)
    with coordinator.at_work(test := Owner("test")):
        web.change("test")
    test.ended = True
    with coordinator.at_work(Owner("next")):
        database.look()
        assert web.state.done == []
        coordinator.settle(web)
    assert (web.state.done, database.state.done) == (["restore"], [])


def test_a_guest_that_is_forgotten_is_left_alone(coordinator, web):
    with coordinator.at_work(test := Owner("test")):
        web.change("test")
    test.ended = True
    coordinator.forget(web)
    with coordinator.at_work(Owner("next")):
        coordinator.settle(web)
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
