"""Subnets, MAC and IP addresses: the same in each run, and never one twice."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

import pytest_kvm as kvm
from pytest_kvm.errors import SpecError
from pytest_kvm.handles.segment import add_nic, discard_nic
from pytest_kvm.provision.addresses import (
    choose_interface4,
    choose_interface6,
    choose_mac,
    choose_subnet4,
    choose_subnet6,
)

AUTO = kvm.NetworkSpec()


def _segment(name, spec=AUTO, others=()):
    subnet = choose_subnet4(name, spec, others=others)
    subnet6 = choose_subnet6(name, spec, others=others)
    nothing: Any = None
    return kvm.Segment(
        name,
        spec,
        subnet=subnet,
        subnet6=subnet6,
        backend=nothing,
        faults=nothing,
        captures=nothing,
    )


def _join(segment, link, nic=None, reserved=()):
    nic = nic or kvm.Nic(segment)
    joined = kvm.GuestNic(
        guest=SimpleNamespace(name=link),
        segment=segment,
        index=0,
        link=link,
        names=(link,),
        mac=choose_mac(nic, segment, link=link, reserved=()),
        interface4=choose_interface4(nic, segment, reserved=reserved),
        interface6=choose_interface6(nic, segment, reserved=reserved),
    )
    add_nic(segment, joined)
    return joined


def test_subnets_follow_from_the_name_and_never_overlap():
    alone = _segment("lan")
    assert (alone.subnet, alone.subnet6) == (_segment("lan").subnet, _segment("lan").subnet6)
    segments = []
    for number in range(256):
        segments.append(_segment(f"net{number}", others=segments))
    assert len({segment.subnet for segment in segments}) == 256
    assert len({segment.subnet6 for segment in segments}) == 256
    with pytest.raises(SpecError, match="all 256 subnets that a run can choose are in use"):
        _segment("one more", others=segments)


def test_an_automatic_subnet_keeps_clear_of_one_that_is_given():
    automatic = _segment("lan")
    wide = _segment("wide", kvm.NetworkSpec(subnet="10.90.0.0/17"))
    assert not _segment("lan", others=[wide]).subnet.overlaps(wide.subnet)
    given = _segment("given", kvm.NetworkSpec(subnet=str(automatic.subnet)), others=[automatic])
    assert given.subnet == automatic.subnet


def test_addresses_are_given_in_order_and_again_when_they_are_free():
    lan = _segment("lan", kvm.NetworkSpec(subnet="10.1.0.0/24", subnet6="fd00::/64"))
    first, second = _join(lan, "a"), _join(lan, "b")
    assert (first.addresses, second.addresses) == (
        ("10.1.0.10/24", "fd00::a/64"),
        ("10.1.0.11/24", "fd00::b/64"),
    )
    assert first.mac != second.mac
    assert discard_nic(lan, first)
    again = _join(lan, "a")
    assert (again.mac, again.addresses) == (first.mac, first.addresses)


def test_addresses_that_are_given():
    lan = _segment("lan", kvm.NetworkSpec(subnet="10.1.0.0/24", subnet6=None))
    holder = _join(lan, "a", kvm.Nic(lan, address="10.1.0.10", mac="52:54:00:00:00:01"))
    assert (holder.mac, holder.addresses) == ("52:54:00:00:00:01", ("10.1.0.10/24",))
    assert str(_join(lan, "b").address) == "10.1.0.11"
    with pytest.raises(SpecError, match="Nic.address: 10.1.0.10 is the address of a on lan"):
        _join(lan, "c", kvm.Nic(lan, address="10.1.0.10"))
    with pytest.raises(SpecError, match="Nic.mac: 52:54:00:00:00:01 is the address of a on lan"):
        _join(lan, "c", kvm.Nic(lan, mac="52:54:00:00:00:01"))


def test_an_address_that_specs_name_is_kept_for_them():
    lan = _segment("lan", kvm.NetworkSpec(subnet="10.1.0.0/24", subnet6="fd00::/120"))
    reserved = {"10.1.0.10", "fd00::a", "fd00::b"}
    assert _join(lan, "a", reserved=reserved).addresses == ("10.1.0.11/24", "fd00::c/120")
    given = _join(lan, "b", kvm.Nic(lan, address="10.1.0.10"), reserved=reserved)
    assert given.addresses == ("10.1.0.10/24", "fd00::d/120")
    small = _segment("small", kvm.NetworkSpec(subnet="10.2.0.0/30", subnet6=None))
    for _ in range(2):  # rather than none at all, an address that nobody has
        _join(small, "a", reserved={"10.2.0.1", "10.2.0.2"})


def test_a_card_that_is_left_to_dhcp_has_no_address():
    lan = _segment("lan")
    assert _join(lan, "a", kvm.Nic(lan, dhcp=True)).addresses == ()


def test_a_full_subnet():
    lan = _segment("lan", kvm.NetworkSpec(subnet="10.1.0.0/30", subnet6=None))
    _join(lan, "a")
    _join(lan, "b")
    with pytest.raises(SpecError, match="no address is free in 10.1.0.0/30, the subnet of lan"):
        _join(lan, "c")


def test_a_mac_address_that_follows_from_two_links():
    lan = _segment("lan")
    taken = _join(lan, "a", kvm.Nic(lan, mac=choose_mac(kvm.Nic(lan), lan, link="b", reserved=())))
    other = _join(lan, "b")
    assert other.mac != taken.mac
    assert choose_mac(kvm.Nic(lan), lan, link="c", reserved=()) != choose_mac(
        kvm.Nic(lan), lan, link="c", reserved={choose_mac(kvm.Nic(lan), lan, link="c", reserved=())}
    )
