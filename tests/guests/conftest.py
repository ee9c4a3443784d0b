"""Real guests for the tests: one shared by all that restore what they change."""

from __future__ import annotations

from collections.abc import Callable

import pytest

import pytest_kvm as kvm


@kvm.guest(scope="session")
def guest():
    """A guest of the default image; whoever changes it restores it."""
    return kvm.GuestSpec(memory="1GiB", vcpus=2)


@pytest.fixture
def boot(kvm_guests: kvm.Guests) -> Callable[..., kvm.Guest]:
    """Boot a guest for one test; raises what kept it from booting."""
    return kvm_guests.boot
