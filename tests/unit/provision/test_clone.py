"""What a template knows of its network service, and what its clones make of it."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_interface
from types import SimpleNamespace
from typing import Any

import pytest

import pytest_kvm as kvm
from pytest_kvm.errors import GuestGone
from pytest_kvm.machine import network_services
from pytest_kvm.provision.clone import _renewal_of, why_no_clone
from pytest_kvm.provision.template_build import TemplateFacts, _hand_over_cards
from pytest_kvm.render.plan import NicPlan
from pytest_kvm.spec.network import declare_network
from tests.unit.provision.start_requests import START_REQUEST
from tests.unit.provision.template_facts import FACTS

LAN = declare_network("lan", kvm.NetworkSpec())


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


def test_leases_are_asked_for_anew_whichever_service_sets_the_segments_cards_up():
    """Cards of a host's network may be networkd's in a guest where NetworkManager runs."""
    spec = kvm.GuestSpec(nics=[kvm.Nic(bridge="br0")])
    nic = NicPlan(index=0, nic=spec.nics[0], mac="52:54:00:00:00:04")
    plan: Any = SimpleNamespace(all_nics=[nic], segment_nics=[])
    request = replace(START_REQUEST, spec=spec)
    for service in (None, "NetworkManager", "systemd-networkd"):
        assert _renewal_of(request, replace(FACTS, network_service=service), plan).renews_leases


CARDS: Any = SimpleNamespace(segment_nics=[SimpleNamespace(mac="52:54:00:00:00:02")])


def test_a_machine_whose_cards_are_set_up_by_nothing_that_is_known(machine, shell, monkeypatch, caplog):
    monkeypatch.setattr(network_services, "_RELEASED_WITHIN", 0.0)
    shell.expect("is-active", "NetworkManager\n")
    shell.expect("/address", "52:54:00:00:00:02 ens1\n")
    shell.expect("DEVICE,STATE", "ens2:connected\n")
    assert _hand_over_cards(machine, CARDS) is None
    assert "leave its cards on segments alone" in caplog.text


def test_a_machine_that_is_removed_while_it_is_frozen(machine, shell):
    shell.expect("is-active", GuestGone("web was removed"))
    with pytest.raises(GuestGone):
        _hand_over_cards(machine, CARDS)


def test_a_machine_without_cards_on_segments_is_not_asked(machine):
    bare: Any = SimpleNamespace(segment_nics=[])
    assert _hand_over_cards(machine, bare) is None


def test_facts_are_read_as_they_were_stored():
    assert TemplateFacts.from_json(FACTS.to_json()) == FACTS
    of_a_lab = replace(FACTS, lab="c0ffee")
    assert TemplateFacts.from_json(of_a_lab.to_json()) == of_a_lab
    assert "lab" not in FACTS.to_json()
