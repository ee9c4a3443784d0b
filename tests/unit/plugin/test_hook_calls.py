"""When the hooks of other plugins are called, and what comes of what they do."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest

from pytest_kvm.errors import BootFailed, SpecError
from pytest_kvm.plugin.hook_calls import BootOutcomes, modify_spec
from pytest_kvm.provision.reset_coordinator import ResetCoordinator
from pytest_kvm.provision.undo_log import Owner
from pytest_kvm.spec.guest import GuestSpec
from tests.fakes_state import FakeGuest


class Node:
    """A test of a session whose only plugin is this one; each call is noted."""

    def __init__(self, *, ready=lambda guest: None, failed=lambda error: None, modify=lambda spec: spec):
        self.config = object()
        self.ihook = self
        self.calls: list[object] = []
        self._ready, self._failed, self._modify = ready, failed, modify

    def pytest_kvm_modify_spec(self, *, config, declaration):
        assert config is self.config
        declaration.spec = self._modify(declaration.spec)

    def pytest_kvm_guest_ready(self, *, config, guest):
        assert config is self.config
        self.calls.append(guest.name)
        self._ready(guest)

    def pytest_kvm_guest_failed(self, *, config, guest, error):
        assert config is self.config
        self.calls.append((guest.name, error))
        self._failed(error)


@pytest.fixture
def coordinator():
    return ResetCoordinator()


@pytest.fixture
def web(coordinator):
    return FakeGuest("web", coordinator)


@pytest.fixture
def outcomes(coordinator):
    return BootOutcomes(coordinator)


def test_a_hook_may_change_the_spec_and_the_next_one_sees_it():
    node = Node(modify=lambda spec: replace(spec, vcpus=3))
    assert modify_spec(node, GuestSpec(memory="1GiB"), name="web") == GuestSpec(memory="1GiB", vcpus=3)


def test_a_hook_that_leaves_no_spec_is_told():
    with pytest.raises(SpecError, match="web: a pytest_kvm_modify_spec hook left NoneType, not a GuestSpec"):
        modify_spec(Node(modify=lambda spec: None), GuestSpec(), name="web")


def test_each_guest_is_told_of_once(outcomes, web, coordinator):
    node, other = Node(), FakeGuest("db", coordinator)
    for guest in (web, other, web):
        outcomes.tell(guest, None, node=node)
    assert node.calls == ["web", "db"]


def test_threads_wait_for_the_hook(outcomes, web):
    begun, ends = threading.Event(), threading.Event()

    def ready(guest):
        begun.set()
        assert ends.wait(10)

    node = Node(ready=ready)
    with ThreadPoolExecutor() as threads:
        first = threads.submit(outcomes.tell, web, None, node=node)
        assert begun.wait(10)
        second = threads.submit(outcomes.tell, web, None, node=node)
        assert not first.done()
        assert not second.done()
        ends.set()
        first.result(10)
        second.result(10)
    assert node.calls == ["web"]


def test_a_hook_may_wait_for_the_guest_and_for_others(outcomes, web, coordinator):
    other = FakeGuest("db", coordinator)

    def ready(guest):
        for each in (web, other):
            outcomes.tell(each, None, node=node)

    node = Node(ready=ready)
    outcomes.tell(web, None, node=node)
    assert node.calls == ["web", "db"]


def test_what_the_ready_hook_raises_is_raised_to_whoever_waits(outcomes, web):
    def ready(guest):
        pytest.skip("its kernel is too old")

    node = Node(ready=ready)
    for _ in range(2):
        with pytest.raises(pytest.skip.Exception, match="its kernel is too old"):
            outcomes.tell(web, None, node=node)
    assert node.calls == ["web"]


def test_a_failed_boot_is_told_of_once(outcomes, web):
    node, error = Node(), BootFailed("web: it did not become ready")
    outcomes.tell(web, error, node=node)
    outcomes.tell(web, error, node=node)
    assert node.calls == [("web", error)]


def test_what_the_failed_hook_raises_replaces_the_boots_error_once_only(outcomes, web):
    def failed(error):
        raise OSError("no space left")

    node = Node(failed=failed)
    with pytest.raises(OSError, match="no space left") as raised:
        outcomes.tell(web, BootFailed("web: it did not become ready"), node=node)
    assert isinstance(raised.value.__cause__, BootFailed), "pytest shows the boot's error, too"
    outcomes.tell(web, BootFailed("web: it did not become ready"), node=node)
    assert len(node.calls) == 1


def test_what_a_hook_does_to_a_guest_outlives_the_test_that_waited_first(outcomes, web, coordinator):
    node = Node(ready=lambda guest: guest.change("note"))
    for name in ("test_a", "test_b"):
        test = Owner(name)
        with coordinator.at_work(test):
            outcomes.tell(web, None, node=node)
            assert web.look() == ["note"]
            web.change(name)
        test.ended = True
    assert node.calls == ["web"]


def test_a_hook_is_called_again_when_its_changes_go_with_a_tests(outcomes, web, coordinator):
    node = Node(ready=lambda guest: guest.change("note"))
    for name in ("test_a", "test_b"):
        test = Owner(name)
        with coordinator.at_work(test):
            outcomes.tell(web, None, node=node)
            assert web.look() == ["note"]
            web.state.is_lost = name == "test_a"  # as when it is switched off
        for owner in coordinator.losers(test):
            outcomes.finish(owner)
        test.ended = True
    assert node.calls == ["web", "web"]


def test_a_hook_that_only_looks_on_costs_no_savepoint(outcomes, web, coordinator):
    test = Owner("test")
    with coordinator.at_work(test):
        outcomes.tell(web, None, node=Node())
        web.change("test")
    assert web.state.done == []


@pytest.mark.parametrize("raises", [False, True])
def test_what_a_hook_did_outside_of_guests_ends_with_its_changes_or_when_it_fails(
    outcomes, web, coordinator, raises
):
    done = []

    def begin_fault(guest):
        guest.change("the hook")
        coordinator.owner.on_end.callback(done.append, "undone")
        if raises:
            raise LookupError

    node = Node(ready=begin_fault)
    with coordinator.at_work(Owner("test")):
        if raises:
            with pytest.raises(LookupError):
                outcomes.tell(web, None, node=node)
            assert done == ["undone"]
        else:
            outcomes.tell(web, None, node=node)
            assert done == []
            web.change("test")
    if not raises:
        [owner] = list(outcomes._changed)
        outcomes.finish(owner)
        assert owner.ended
        assert done == ["undone"]
