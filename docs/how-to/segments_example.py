"""Guests on a segment."""

from __future__ import annotations

import pytest_kvm as kvm


def test_they_find_each_other_by_name(alice: kvm.Guest, bob: kvm.Guest) -> None:
    alice.run(["ping", "-c", "1", "bob"])
    bob.run(["ping", "-c", "1", "alice.lan"])
    bob.run(["ping", "-6", "-c", "1", "alice"])


def test_addresses(lan: kvm.Segment, alice: kvm.Guest, bob: kvm.Guest) -> None:
    assert alice.address(lan) == "10.1.0.5"
    assert bob.address(lan) == "10.1.0.10"
    assert bob.address(lan, version=6) == "fd00:1::a"


def test_a_guest_joins(lan: kvm.Segment, alice: kvm.Guest, kvm_guests: kvm.Guests) -> None:
    spec = kvm.GuestSpec(memory="512MiB", vcpus=1, nics=[kvm.Nic(lan)])
    carol = kvm_guests.boot(spec, name="carol")
    alice.run(["ping", "-c", "1", "carol"])
    carol.run(["ping", "-c", "1", "alice"])


def test_what_the_guest_calls_its_card(lan: kvm.Segment, alice: kvm.Guest) -> None:
    card = alice.nics[0]
    assert card.segment is lan
    assert alice.read_text(f"/sys/class/net/{card.device}/address") == f"{card.mac}\n"
