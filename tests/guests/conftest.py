"""Real guests for the full suite."""

from __future__ import annotations

from dataclasses import replace

import pytest_kvm as kvm
from tests.guest_specs import SMALL
from tests.shared_guest import boot, guest

__all__ = ["boot", "guest"]


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
