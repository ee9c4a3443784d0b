from __future__ import annotations

from contextlib import closing

import pytest

from pytest_kvm.provision.reset_coordinator import ResetCoordinator
from pytest_kvm.provision.run_resources import Lazy
from pytest_kvm.provision.segment_faults import SegmentFaults
from pytest_kvm.provision.segments import Segments
from pytest_kvm.switch.client import Switch


@pytest.fixture
def switch():
    switch = Lazy(lambda: closing(Switch()))
    yield switch
    switch.close()


@pytest.fixture
def coordinator():
    return ResetCoordinator()


@pytest.fixture
def faults(switch, coordinator):
    return SegmentFaults(switch, coordinator, seed="of a test")


@pytest.fixture
def segments(switch, faults):
    return Segments(switch, faults=faults)
