"""Which guests are not cloned although there is a template."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_interface
from types import SimpleNamespace
from typing import Any

import pytest

import pytest_kvm as kvm
from pytest_kvm.provision.clone import why_no_clone
from pytest_kvm.provision.template_build import TemplateFacts
from pytest_kvm.spec.network import declare_network
from tests.unit.provision.start_requests import START_REQUEST

LAN = declare_network("lan", kvm.NetworkSpec())
FACTS = TemplateFacts(
    tier="cow",
    control_mac="52:54:00:00:00:01",
    macs=("52:54:00:00:00:02",),
    hostname="guest",
    host_key="ssh-ed25519 AAAA",
    disks=(("root.qcow2", "qcow2"),),
    prestarted=(),
    boot_seconds=40.0,
    network_service=None,
)


def joined(*, address):
    guest: Any = None
    segment: Any = None
    return kvm.GuestNic(
        guest=guest,
        segment=segment,
        index=0,
        link="web",
        names=("web",),
        mac="52:54:00:00:00:03",
        interface4=ip_interface("10.1.0.5/24") if address else None,
        interface6=None,
    )


@pytest.mark.parametrize(
    ("dhcp", "service", "refused"),
    [
        (None, None, True),
        (True, None, True),
        (False, None, False),
        (None, "ifupdown", False),
        (True, "systemd-networkd", False),
    ],
)
def test_a_guest_with_addresses_that_nothing_would_set_again(dhcp, service, refused):
    spec = kvm.GuestSpec(nics=[kvm.Nic(LAN, dhcp=dhcp)])
    request = replace(START_REQUEST, spec=spec, nics=(joined(address=dhcp is None),))
    facts = replace(FACTS, network_service=service)
    template: Any = SimpleNamespace(manifest=SimpleNamespace(facts=facts.to_json()))
    assert bool(why_no_clone(request, template)) is refused


def test_a_guest_on_no_segment_is_cloned():
    template: Any = SimpleNamespace(manifest=SimpleNamespace(facts=FACTS.to_json()))
    assert why_no_clone(START_REQUEST, template) == ""


def test_facts_are_read_as_they_were_stored():
    assert TemplateFacts.from_json(FACTS.to_json()) == FACTS
