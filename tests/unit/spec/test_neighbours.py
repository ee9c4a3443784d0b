"""Which guests can be on one segment together."""

from __future__ import annotations

import pytest

import pytest_kvm as kvm
from pytest_kvm.errors import SpecError
from pytest_kvm.spec.neighbours import check_neighbours, hostname_from, names_of
from pytest_kvm.spec.network import declare_network

LAN = declare_network("lan", kvm.NetworkSpec(subnet="10.1.0.0/30", subnet6=None))
OTHER = declare_network("other", kvm.NetworkSpec())


def _guest(*nics, hostname=None):
    return kvm.GuestSpec(nics=nics, hostname=hostname)


@pytest.mark.parametrize(
    ("spec", "other", "message"),
    [
        (
            _guest(kvm.Nic(LAN, address="10.1.0.1")),
            _guest(kvm.Nic(LAN, address="10.1.0.1")),
            "Nic.address of a: 10.1.0.1 is the address of b on lan",
        ),
        (
            _guest(kvm.Nic(OTHER, address6="fd00::1"), kvm.Nic(OTHER, address6="fd00::1")),
            _guest(),
            "Nic.address6 of a: fd00::1 is the address of a on other",
        ),
        (
            _guest(kvm.Nic(LAN), hostname="x.example.org"),
            _guest(kvm.Nic(LAN), hostname="x.example.net"),
            "a and b are both called 'x' on lan",
        ),
        (_guest(kvm.Nic(LAN), hostname="b"), _guest(kvm.Nic(LAN)), "a and b are both called 'b' on lan"),
        (_guest(kvm.Nic(LAN), kvm.Nic(LAN)), _guest(kvm.Nic(LAN)), "a: lan has addresses for 2 cards"),
    ],
)
def test_guests_that_cannot_be_on_one_segment(spec, other, message):
    with pytest.raises(SpecError, match=message):
        check_neighbours("a", spec, others={"b": other})


@pytest.mark.parametrize(
    ("spec", "other"),
    [
        (_guest(kvm.Nic(LAN, address="10.1.0.1")), _guest(kvm.Nic(OTHER, address="10.1.0.1"))),
        (_guest(kvm.Nic(LAN, address="10.1.0.1")), _guest(kvm.Nic(LAN, address="10.1.0.2"))),
        (_guest(kvm.Nic(LAN), hostname="x"), _guest(kvm.Nic(OTHER), hostname="x")),
        (_guest(kvm.Nic(LAN), kvm.Nic(LAN)), _guest(kvm.Nic(LAN, dhcp=True), kvm.Nic(OTHER))),
        (_guest(kvm.Nic()), _guest(kvm.Nic(), hostname="a")),
    ],
)
def test_guests_that_can(spec, other):
    check_neighbours("a", spec, others={"b": other})


@pytest.mark.parametrize(
    ("name", "hostname", "names"),
    [
        ("web", None, ("web",)),
        ("web_1", None, ("web-1",)),
        ("db", "db.example.org", ("db.example.org", "db")),
        ("db", "store.example.org", ("store.example.org", "store", "db")),
        ("___", None, ("guest",)),
    ],
)
def test_names_by_which_others_find_a_guest(name, hostname, names):
    assert names_of(name, kvm.GuestSpec(hostname=hostname)) == names
    assert hostname_from(name) in names
