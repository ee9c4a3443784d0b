"""A start request, for tests that start no machine."""

from __future__ import annotations

import logging
from types import SimpleNamespace
from typing import Any

import pytest_kvm as kvm
from pytest_kvm.machine.boot import Phases
from pytest_kvm.provision.start_request import Place, StartRequest, Teardown
from pytest_kvm.render.domain_draft import draft_domain
from tests.unit.provision.free_rooms import free_room

_LOG = logging.getLogger("pytest_kvm.web")
_IMAGE: Any = SimpleNamespace(name="made up")
_SPEC = kvm.GuestSpec(memory="512MiB")
START_REQUEST = StartRequest(
    spec=_SPEC,
    name="web",
    place=Place("web"),
    hostname="web",
    image=_IMAGE,
    domain=draft_domain(_SPEC, accel="tcg", direct_boot=None),
    packages_left=(),
    resets=True,
    nics=(),
    tied_macs={},
    host_lines=list,
    log=_LOG,
    phases=Phases(_LOG),
    on_step=_LOG.info,
    room=free_room("web"),
    teardown=Teardown("web"),
)
