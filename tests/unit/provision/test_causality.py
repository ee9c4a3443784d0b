"""Random walks of tests and fixtures over guests that talk: what none of them may have heard."""

from __future__ import annotations

import itertools
import random
from concurrent.futures import Future

import pytest

from pytest_kvm.provision import reset_coordinator
from pytest_kvm.provision.reset_coordinator import ResetCoordinator
from pytest_kvm.provision.undo_log import Owner
from tests import fakes_state
from tests.fakes_state import FakeGuest, FakeSegment, FakeState

WALKS = 300


class Speaker(FakeState):
    """A guest that remembers, as its memory does, which messages it has sent and heard."""

    def __init__(self):
        super().__init__()
        self.sent, self.heard = set(), set()
        self._remembered = {self._base: (set(), set())}

    def take(self):
        point = super().take()
        self._remembered[point] = (set(self.sent), set(self.heard))
        return point

    def talk_all(self):
        """Have guests talk to each other; the walk says how."""
        raise NotImplementedError

    def take_all(self, states):
        """Take savepoints of guests that talk up to the last moment, and from the first moment on."""
        self.talk_all()
        points = super().take_all(states)
        self.talk_all()
        return points

    def restore(self, point):
        tier = super().restore(point)
        self.sent, self.heard = (set(each) for each in self._remembered[point])
        return tier


class Walk:
    """One run of some tests and fixtures."""

    def __init__(self, seed, monkeypatch, *, talks_between_tests):
        self.random = random.Random(seed)
        self.coordinator = ResetCoordinator()
        self.talks_between_tests = talks_between_tests
        self.numbers = itertools.count()
        self.senders = {}
        self.fixtures = []
        monkeypatch.setattr(fakes_state, "FakeState", Speaker)
        monkeypatch.setattr(Speaker, "talk_all", self.talk)
        self.guests = [FakeGuest(name, self.coordinator) for name in "abc"]
        unwatched = FakeGuest("d", self.coordinator)
        FakeSegment(*self.guests, unwatched)
        self.coordinator.forget(unwatched)
        self.all_guests = [*self.guests, unwatched]

    def talk(self):
        for _ in range(self.random.randint(0, 2)):
            sender, receiver = self.random.sample(self.guests, 2)
            if not (sender.state.is_detached or receiver.state.is_detached):
                number = next(self.numbers)
                self.senders[number] = sender.state
                sender.state.sent.add(number)
                receiver.state.heard.add(number)
                sender.state.frames_told += 1
                receiver.state.frames += 1

    def check(self):
        """Look at guests that can talk to each other; those that are cut off are put back first."""
        talking = [guest.state for guest in self.guests if not guest.state.is_detached]
        for sender, receiver in itertools.permutations(talking, 2):
            heard_of_sender = {number for number in receiver.heard if self.senders[number] is sender}
            assert heard_of_sender <= sender.sent

    def use(self):
        for _ in range(self.random.randint(0, 2)):
            self.coordinator.before_use(self.random.choice(self.all_guests))
            self.check()
            self.talk()

    def end(self, owner):
        owner.ended = True
        for loser in self.coordinator.losers(owner):
            self.finish(loser)
        self.coordinator.cut_off(owner)

    def finish(self, fixture):
        if fixture in self.fixtures:
            self.fixtures.remove(fixture)
            with self.coordinator.at_work(fixture):
                for loser in self.coordinator.losers(fixture):
                    self.finish(loser)
                self.use()
            self.end(fixture)

    def test(self, name):
        reset = self.random.choice([None, None, None, "always", "never"])
        with self.coordinator.at_work(test := Owner(name, reset=reset)):
            for number in range(self.random.choice([0, 0, 1, 2])):
                fixture = Owner(f"fixture {number} for {name}")
                with self.coordinator.at_work(fixture):
                    self.use()
                self.fixtures.append(fixture)
            self.coordinator.settle(self.random.sample(self.all_guests, self.random.randint(0, 4)))
            self.check()
            self.talk()
            self.use()
            self.end(test)
            while self.fixtures and self.random.random() < 0.3:
                self.finish(self.fixtures[-1])
        if self.talks_between_tests:
            self.talk()


@pytest.mark.parametrize("talks_between_tests", [False, True])
def test_no_guest_has_heard_what_its_sender_has_yet_to_say(monkeypatch, talks_between_tests):
    monkeypatch.setattr(reset_coordinator, "in_thread", at_once)
    for seed in range(WALKS):
        walk = Walk(seed, monkeypatch, talks_between_tests=talks_between_tests)
        for name in ("one", "two", "three", "four"):
            walk.test(name)


def at_once(action):
    future = Future()
    future.set_result(action())
    return future
