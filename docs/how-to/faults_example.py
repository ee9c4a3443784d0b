"""Networks that fail."""

from __future__ import annotations

import pytest_kvm as kvm


def reaches(guest: kvm.Guest, whom: str) -> bool:
    return guest.run(["ping", "-c", "1", "-W", "1", whom], check=False).ok


def test_a_partition(lan: kvm.Segment, alice: kvm.Guest, bob: kvm.Guest) -> None:
    with lan.partition({alice}, {bob}):
        assert not reaches(alice, "bob")
    assert reaches(alice, "bob")


def test_a_guest_alone(lan: kvm.Segment, alice: kvm.Guest, bob: kvm.Guest) -> None:
    lan.isolate(alice)
    assert not reaches(bob, "alice")
    lan.heal()
    assert reaches(bob, "alice")


def test_a_cable_is_pulled_out(lan: kvm.Segment, alice: kvm.Guest) -> None:
    carrier = f"/sys/class/net/{alice.nics[0].device}/carrier"
    with lan.unplug(alice):
        assert alice.read_text(carrier) == "0\n"
    assert alice.read_text(carrier) == "1\n"


def test_a_slow_line(lan: kvm.Segment, alice: kvm.Guest, bob: kvm.Guest) -> None:
    with lan.delay(0.1, link=bob), lan.rate("1Mbit", link=bob, direction="in"):
        said = alice.run(["ping", "-q", "-c", "3", "-i", "0.3", "bob"]).stdout
    fastest = float(said.rpartition("= ")[2].partition("/")[0])
    assert fastest >= 200, "100 ms there and 100 ms back"


def test_a_bad_line(lan: kvm.Segment, alice: kvm.Guest, bob: kvm.Guest) -> None:
    with lan.loss(0.5), lan.duplicate(0.1), lan.reorder(0.1, hold=0.005), lan.corrupt(0.05):
        alice.run(["ping", "-c", "20", "-i", "0.05", "-W", "1", bob.address(lan)], check=False)
    assert alice.nics[0].counters["out"]["dropped"]["loss"] >= 1


def test_no_connection_is_accepted(lan: kvm.Segment, alice: kvm.Guest, bob: kvm.Guest) -> None:
    with lan.drop("tcp and dst port 22", link=bob, direction="in"):
        connect = ["timeout", "2", "bash", "-c", f": < /dev/tcp/{bob.address(lan)}/22"]
        assert alice.run(connect, check=False).exit_code == 124, "it waited for an answer"
        assert reaches(alice, bob.address(lan))


def test_only_some_packets(lan: kvm.Segment, alice: kvm.Guest, bob: kvm.Guest) -> None:
    def is_answer_by_ipv6(packet: kvm.Packet) -> bool:
        return packet.protocol == "icmp6" and packet.src_mac == bob.nics[0].mac

    with lan.drop(is_answer_by_ipv6):
        assert not reaches(alice, bob.address(lan, version=6))
        assert reaches(alice, bob.address(lan))


def test_what_was_lost_is_counted(lan: kvm.Segment, alice: kvm.Guest, bob: kvm.Guest) -> None:
    with lan.loss(1.0, link=bob, direction="in"):
        assert not reaches(alice, "bob")
    assert bob.nics[0].counters["in"]["dropped"]["loss"] >= 1
