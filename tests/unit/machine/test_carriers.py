from __future__ import annotations

import pytest

from pytest_kvm.machine.carriers import Carriers


class _Domain:
    def __init__(self):
        self.done = []

    def qmp(self, command, arguments):
        self.done.append((command, arguments["name"], arguments["up"]))


@pytest.fixture
def domain():
    return _Domain()


def test_cards_have_a_carrier_until_it_is_taken_away(domain):
    carriers = Carriers()
    for on in (True, True, False, False, True):
        carriers.set(domain, "card", on=on)
    assert domain.done == [("set_link", "card", False), ("set_link", "card", True)]


def test_a_savepoint_may_hold_other_carriers_once_one_was_taken_away(domain):
    carriers = Carriers()
    carriers.set(domain, "one", on=True)
    carriers.set(domain, "other", on=True)
    carriers.set_again(domain)
    assert domain.done == []
    carriers.set(domain, "other", on=False)
    carriers.set(domain, "other", on=True)
    domain.done.clear()
    carriers.set_again(domain)
    assert domain.done == [("set_link", "one", True), ("set_link", "other", True)]
