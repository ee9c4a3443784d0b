"""The segments of a run, with a real switch process and without guests."""

from __future__ import annotations

import os
import signal

import pytest

import pytest_kvm as kvm
from pytest_kvm.errors import GuestGone, SpecError, SwitchFailed

SPEC = kvm.NetworkSpec(subnet="10.1.0.0/24", subnet6=None)


class _Guest:
    state = "booting"

    def __init__(self, name):
        self.name = name
        self.nics = ()


def _join(segments, name, *nics, declared_name=None, hostname=None):
    guest = _Guest(name)
    spec = kvm.GuestSpec(nics=nics, hostname=hostname)
    guest.nics = segments.join(guest, spec, declared_name=declared_name or name)
    return guest


def test_guests_join_and_leave(segments):
    lan = segments.make("lan", SPEC)
    web, db = _join(segments, "web", kvm.Nic(), kvm.Nic(lan)), _join(segments, "db", kvm.Nic(lan))
    assert lan.guests == [web, db]
    assert set(lan.counters) == {"web", "db"}
    assert web.nics[0].index == 1
    assert lan.address_of(db) == "10.1.0.11"
    segments.leave(web.nics)
    segments.leave(web.nics)
    assert (lan.guests, set(lan.counters)) == ([db], {"db"})
    with pytest.raises(SpecError, match="other has no card on the segment lan; on it: db"):
        lan.address_of(_Guest("other"))
    with pytest.raises(SpecError, match="db has no fixed IPv6 address on the segment lan"):
        lan.address_of(db, version=6)


def test_a_guest_with_two_cards_on_one_segment(segments):
    lan = segments.make("lan", SPEC)
    router = _join(segments, "router", kvm.Nic(lan), kvm.Nic(lan))
    assert [nic.link for nic in router.nics] == ["router", "router.2"]
    assert lan.guests == [router]
    assert segments.host_lines(router.nics) == ["10.1.0.10\trouter\trouter.lan"]
    dotted = _join(segments, "router.2", kvm.Nic(lan))
    assert dotted.nics[0].link == "router.2.2"


def test_the_first_card_with_an_address_counts(segments):
    lan = segments.make("lan", SPEC)
    web = _join(segments, "web", kvm.Nic(lan, dhcp=True), kvm.Nic(lan), kvm.Nic(lan))
    assert lan.address_of(web) == "10.1.0.10"
    assert segments.host_lines(web.nics) == ["10.1.0.10\tweb\tweb.lan"]
    with pytest.raises(SpecError, match="version: 5 is not one of 4, 6"):
        lan.address_of(web, version=5)


def test_an_address_is_kept_for_the_card_whose_spec_names_it(segments):
    lan = segments.make("lan", SPEC, reserved={"10.1.0.10"})
    web = _join(segments, "web", kvm.Nic(lan), kvm.Nic(lan, address="10.1.0.11"))
    assert [str(nic.address) for nic in web.nics] == ["10.1.0.12", "10.1.0.11"]


def test_names_of_guests_on_the_same_segments(segments):
    lan, wan = (
        segments.make("lan", SPEC),
        segments.make("wan", kvm.NetworkSpec(subnet=None, subnet6="fd00::/64")),
    )
    router = _join(segments, "router", kvm.Nic(lan), kvm.Nic(wan))
    inside = _join(segments, "in_side", kvm.Nic(lan), hostname="db.example.org")
    outside = _join(segments, "outside", kvm.Nic(wan))
    assert segments.host_lines(inside.nics) == [
        "10.1.0.10\trouter\trouter.lan",
        "10.1.0.11\tdb.example.org\tdb\tin-side\tdb.lan\tin-side.lan",
    ]
    assert segments.host_lines(outside.nics) == [
        "fd00::a\trouter\trouter.wan",
        "fd00::b\toutside\toutside.wan",
    ]
    assert len(segments.host_lines(router.nics)) == 4


def test_a_guest_has_its_fixtures_name_unless_another_has_it_there(segments):
    lan, wan = segments.make("lan", SPEC), segments.make("wan", SPEC)
    _join(segments, "web", kvm.Nic(lan))
    second = _join(segments, "web-2", kvm.Nic(lan), declared_name="web")
    third = _join(segments, "web-3", kvm.Nic(wan), declared_name="web")
    assert (second.nics[0].link, second.nics[0].names) == ("web-2", ("web-2", "web-2.lan"))
    assert third.nics[0].link == "web"
    assert third.nics[0].names == ("web-3", "web", "web-3.wan", "web.wan")


def test_a_guest_whose_name_is_another_guests_joins_nowhere(segments):
    lan, wan = segments.make("lan", SPEC), segments.make("wan", kvm.NetworkSpec())
    _join(segments, "web", kvm.Nic(lan))
    with pytest.raises(SpecError, match="db and web are both called 'web' on lan"):
        _join(segments, "db", kvm.Nic(wan), kvm.Nic(lan), hostname="web.example.org")
    assert wan.nics == ()
    assert wan.counters == {}


def test_two_segments_of_one_name(segments):
    one, other = segments.make("lan", kvm.NetworkSpec()), segments.make("lan", kvm.NetworkSpec())
    assert one.subnet != other.subnet
    _join(segments, "web", kvm.Nic(one))
    assert other.counters == {}
    router = _join(segments, "router", kvm.Nic(one), kvm.Nic(other))
    assert router.nics[0].mac != router.nics[1].mac


def test_a_segment_that_was_removed(segments):
    lan = segments.make("lan", SPEC)
    web = _join(segments, "web", kvm.Nic(lan))
    segments.remove(lan)
    segments.leave(web.nics)
    with pytest.raises(SpecError, match="the segment lan was removed, and its counters with it"):
        _ = lan.counters
    with pytest.raises(GuestGone, match="web was removed, and its card on lan with it"):
        _ = web.nics[0].counters
    assert lan.address_of(web) == "10.1.0.10"
    with pytest.raises(SpecError, match=r"the segment lan was removed\n.*ask for its fixture: def db\(lan\)"):
        _join(segments, "db", kvm.Nic(lan))


def test_a_switch_that_has_ended_is_told_and_guests_can_leave(segments, switch):
    lan = segments.make("lan", SPEC)
    web = _join(segments, "web", kvm.Nic(lan))
    segments.tell_names(web)
    os.kill(switch.get().pid, signal.SIGKILL)
    with pytest.raises(SwitchFailed, match="the switch of this run has ended"):
        _join(segments, "db", kvm.Nic(lan))
    with pytest.raises(SwitchFailed, match="exit status -9"):
        segments.tell_names(web)
    segments.leave(web.nics)
    with pytest.raises(SwitchFailed, match="the switch of this run has ended"):
        segments.remove(lan)
