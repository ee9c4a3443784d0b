"""The guest that tests of several folders share, and the way to one of their own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

import pytest_kvm as kvm
from tests.guest_specs import SMALL


@kvm.guest(scope="session")
def guest():
    """A guest of the default image; never reset: whoever changes it restores it."""
    return replace(SMALL, reset="never")


@pytest.fixture
def boot(kvm_guests: kvm.Guests) -> Callable[..., kvm.Guest]:
    """Boot a guest for one test; raises what kept it from booting."""
    return kvm_guests.boot
