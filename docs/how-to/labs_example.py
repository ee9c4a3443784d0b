"""Several guests as one."""

from __future__ import annotations

import pytest_kvm as kvm


def test_two_guests_go_back_together(alice: kvm.Guest, bob: kvm.Guest) -> None:
    lab = kvm.lab(alice, bob)
    with lab.savepoint():
        for guest in lab.guests:
            guest.write_text("/root/upgraded", "yes\n")
    for guest in lab.guests:
        guest.wait_for_file("/root/upgraded", absent=True)
    alice.run(["ping", "-c", "1", "bob"])


def test_each_attempt_begins_at_the_same_point(lan: kvm.Segment, alice: kvm.Guest, bob: kvm.Guest) -> None:
    lab = kvm.lab(lan)
    lab.savepoint("before all attempts")
    for mtu in ("1400", "1300"):
        for guest in (alice, bob):
            guest.run(["ip", "link", "set", guest.nics[0].device, "mtu", mtu])
        alice.run(["ping", "-c", "1", "bob"])
        lab.restore()
        assert alice.read_text(f"/sys/class/net/{alice.nics[0].device}/mtu") == "1500\n"


def test_all_stand_still(alice: kvm.Guest, bob: kvm.Guest) -> None:
    lab = kvm.lab(alice, bob)
    lab.pause()
    lab.resume()
    alice.run(["ping", "-c", "1", "bob"])
