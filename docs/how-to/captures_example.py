"""Prove what passed."""

from __future__ import annotations

import pytest_kvm as kvm


def test_the_answer_is_seen(lan: kvm.Segment, alice: kvm.Guest, bob: kvm.Guest) -> None:
    def is_answer(packet: kvm.Packet) -> bool:
        return packet.protocol == "icmp" and str(packet.src) == bob.address(lan)

    with lan.capture() as crossed:
        alice.run(["ping", "-4", "-c", "1", "bob"])
        answer = crossed.wait_for_packet(is_answer)
    assert str(answer.dst) == alice.address(lan)


def test_nothing_reaches_a_guest_that_is_cut_off(lan: kvm.Segment, alice: kvm.Guest, bob: kvm.Guest) -> None:
    with lan.isolate(bob), bob.nics[0].capture() as at_bob:
        alice.run(["ping", "-c", "2", "-i", "0.2", "-W", "1", bob.address(lan)], check=False)
        at_bob.assert_no_packet(lambda packet: packet.direction == "in")


def test_each_request_has_its_answer(lan: kvm.Segment, alice: kvm.Guest, bob: kvm.Guest) -> None:
    with lan.capture() as crossed:
        alice.run(["ping", "-c", "3", bob.address(lan)])
        senders = [packet.link for packet in crossed if packet.protocol == "icmp"]
    assert senders == ["alice", "bob"] * 3
