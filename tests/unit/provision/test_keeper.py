"""Who is at work, and whose ledger hears of it."""

from __future__ import annotations

import pytest

from pytest_kvm.provision.keeper import Keeper
from pytest_kvm.provision.ledger import Owner
from tests.fakes_state import FakeGuest


@pytest.fixture
def keeper():
    return Keeper()


@pytest.fixture
def web(keeper):
    return FakeGuest("web", keeper)


def test_the_innermost_is_the_one_who_changes_a_guest(keeper, web):
    test, fixture = Owner("test"), Owner("fixture")
    with keeper.at_work(test):
        with keeper.at_work(fixture):
            web.change("fixture")
        web.change("test")
    test.ended = True
    with keeper.at_work(Owner("next")):
        assert web.look() == ["fixture"]


def test_leaving_takes_along_whoever_worked_on_ones_behalf(keeper):
    test, fixture = Owner("test"), Owner("fixture")
    keeper.enter(test)
    keeper.enter(fixture)
    keeper.leave(test)
    assert keeper.owner is None
    keeper.leave(fixture)


def test_an_exception_ends_the_work(keeper):
    with pytest.raises(RuntimeError), keeper.at_work(Owner("fixture")):
        raise RuntimeError
    assert keeper.owner is None


def test_a_look_between_tests_undoes_nothing(keeper, web):
    with keeper.at_work(test := Owner("test")):
        web.change("test")
    test.ended = True
    assert web.look() == ["test"]
    assert web.state.done == []


def test_guests_are_kept_apart(keeper, web):
    database = FakeGuest("database", keeper)
    with keeper.at_work(test := Owner("test")):
        web.change("test")
    test.ended = True
    with keeper.at_work(Owner("next")):
        database.look()
        assert web.state.done == []
        keeper.settle(web)
    assert (web.state.done, database.state.done) == (["restore"], [])


def test_a_guest_that_is_forgotten_is_left_alone(keeper, web):
    with keeper.at_work(test := Owner("test")):
        web.change("test")
    test.ended = True
    keeper.forget(web)
    with keeper.at_work(Owner("next")):
        keeper.settle(web)
        assert web.look() == ["test"]


def test_losers_on_all_guests_the_last_first(keeper, web):
    database = FakeGuest("database", keeper)
    below, one, two = Owner("below"), Owner("one"), Owner("two")
    for owner, guests in ((below, [web, database]), (one, [web]), (two, [web, database])):
        with keeper.at_work(owner):
            for guest in guests:
                guest.change(owner.name)
    assert keeper.losers(below) == [two, one]
    assert keeper.losers(two) == []
