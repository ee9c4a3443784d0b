from __future__ import annotations

from contextlib import closing

import pytest

from pytest_kvm.provision.run_resources import Lazy
from pytest_kvm.provision.segments import Segments
from pytest_kvm.switch.client import Switch


@pytest.fixture
def switch():
    switch = Lazy(lambda: closing(Switch()))
    yield switch
    switch.close()


@pytest.fixture
def segments(switch):
    return Segments(switch)
