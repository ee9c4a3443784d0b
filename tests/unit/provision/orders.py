"""An order of a guest, for tests that start none."""

from __future__ import annotations

import logging
from types import SimpleNamespace
from typing import Any

import pytest_kvm as kvm
from pytest_kvm.provision.guests import Order

_IMAGE: Any = SimpleNamespace(name="made up")
ORDER = Order(
    spec=kvm.GuestSpec(memory="512MiB"),
    name="web",
    place="web",
    hostname="web",
    image=_IMAGE,
    packages_left=(),
    log=logging.getLogger("pytest_kvm.web"),
)
