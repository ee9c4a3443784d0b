"""Real guests for the full suite."""

from __future__ import annotations

from dataclasses import replace

import pytest

import pytest_kvm as kvm
from pytest_kvm.plugin.session import settings_stashed
from tests.guest_specs import SMALL
from tests.shared_guest import boot, guest
from tests.suite_outcome import Outcome, outcome_of

__all__ = ["boot", "guest"]


@pytest.fixture(scope="module")
def outcome(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, pytestconfig: pytest.Config
) -> Outcome:
    """How the suite has ended that the module holds as ``SUITE``."""
    folder, settings = tmp_path_factory.mktemp("suites"), settings_stashed(pytestconfig)
    return outcome_of(request.module.SUITE, folder=folder, settings=settings)


@kvm.network(scope="module")
def lan():
    return kvm.NetworkSpec(subnet="10.1.0.0/24", subnet6="fd00:1::/64")


@kvm.guest(scope="module")
def speaker(lan):
    return replace(SMALL, nics=[kvm.Nic(lan)])


@kvm.guest(scope="module")
def listener(lan):
    return replace(SMALL, nics=[kvm.Nic(lan)])


@kvm.guest(scope="module")
def bystander(lan):
    return replace(SMALL, nics=[kvm.Nic(lan)])
