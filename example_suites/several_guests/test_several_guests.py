"""Guests made during a test, booted at the same time."""

from __future__ import annotations

import pytest

import pytest_kvm as kvm

SMALL = kvm.GuestSpec(memory="512MiB", vcpus=1, identity="unique")


def test_two_at_once(kvm_guests: kvm.Guests):
    one, two = kvm_guests.boot_all(SMALL, SMALL, names=["one", "two"])
    assert one.hostname == "one"
    assert two.hostname == "two"
    assert one.read_text("/etc/machine-id") != two.read_text("/etc/machine-id")


@pytest.mark.kvm(memory="768MiB")
def test_the_marker_changes_a_spec(kvm_guests: kvm.Guests):
    guest = kvm_guests.boot(SMALL)
    total_kib = int(guest.run("awk '/^MemTotal/ {print $2}' /proc/meminfo").stdout)
    assert 600 * 1024 < total_kib < 768 * 1024
