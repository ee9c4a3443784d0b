from __future__ import annotations

from contextlib import closing, nullcontext
from types import SimpleNamespace

import pytest

from pytest_kvm.provision.reset_coordinator import ResetCoordinator
from pytest_kvm.provision.run_resources import Lazy
from pytest_kvm.provision.segment_captures import SegmentCaptures
from pytest_kvm.provision.segment_faults import SegmentFaults
from pytest_kvm.provision.segments import Segments
from pytest_kvm.settings import Timeouts
from pytest_kvm.switch.client import Switch
from tests.fakes_state import FakeGuest, FakeSegment
from tests.unit.provision.joined_cards import JoinedGuests


@pytest.fixture
def switch():
    switch = Lazy(lambda: closing(Switch()))
    yield switch
    switch.close()


@pytest.fixture
def coordinator():
    return ResetCoordinator()


@pytest.fixture
def lab(coordinator):
    """Return a client that reaches a server by way of a router."""
    client, router, server = (FakeGuest(name, coordinator) for name in ("client", "router", "server"))
    FakeSegment(client, router)
    FakeSegment(router, server)
    return client, router, server


@pytest.fixture
def faults(coordinator):
    return SegmentFaults(coordinator, seed="of a test")


@pytest.fixture
def resources(switch, tmp_path):
    return Lazy(lambda: nullcontext(SimpleNamespace(folder=tmp_path, switch=switch, timeouts=Timeouts())))


@pytest.fixture
def captures(resources, coordinator):
    return SegmentCaptures(resources, coordinator, records=False)


@pytest.fixture
def segments(switch, resources, faults, captures):
    return Segments(switch, resources, faults=faults, captures=captures, before_removal=str)


@pytest.fixture
def guests(segments, switch, tmp_path):
    guests = JoinedGuests(segments, switch, tmp_path)
    yield guests
    guests.close()
