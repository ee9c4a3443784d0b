"""Cards that are not virtio, and a kernel with drivers for them; saved states hold their MAC addresses."""

from __future__ import annotations

from dataclasses import replace

import pytest

import pytest_kvm as kvm
from tests.guest_specs import SMALL


@kvm.network(scope="module")
def lan():
    return kvm.NetworkSpec()


@kvm.guest(scope="module")
def mixed(lan):
    nics = [kvm.Nic(lan, model="e1000e"), kvm.Nic(lan, model="rtl8139"), kvm.Nic(model="e1000e")]
    return replace(SMALL, packages=["linux-image-amd64"], nics=nics)


@kvm.guest(scope="module")
def neighbour(lan):
    return replace(SMALL, nics=[kvm.Nic(lan)])


def check_cards(mixed, neighbour):
    drivers = [
        mixed.run(["readlink", f"/sys/class/net/{nic.device}/device/driver"]).stdout for nic in mixed.nics
    ]
    assert [each.strip().rpartition("/")[2] for each in drivers] == ["e1000e", "8139cp"]
    show = ["ip", "-oneline", "-6", "address", "show", "scope", "link", "dev", neighbour.nics[0].device]
    address = neighbour.run(show).stdout.split()[3].partition("/")[0]
    for nic in mixed.nics:
        mixed.run(["ping", "-c", "1", "-W", "20", f"{address}%{nic.device}"])


def test_each_card_of_a_clone_sends_and_receives(mixed, neighbour):
    assert mixed.kernel.endswith("+deb13-amd64")
    assert "banner" not in mixed.boot_phases, "it was cloned, and did not boot"
    check_cards(mixed, neighbour)


def test_another_clone_does_so_through_a_reboot(mixed, neighbour):
    assert "banner" not in mixed.boot_phases
    mixed.reboot()
    check_cards(mixed, neighbour)


def wait_for_carrier(nic, value):
    """Wait for what the guest's kernel says: this driver looks at its cable now and then."""
    nic.guest.wait_until(f"grep -qx {value} /sys/class/net/{nic.device}/carrier", timeout=60)


def test_cables_that_are_pulled_out(lan, mixed, neighbour):
    """The guest sees it on the second card; the first tells it of no change, and passes no frame either."""
    _, second = mixed.nics
    ping = ["ping", "-c", "1", "-W", "2", mixed.address(lan)]
    plugged_in = mixed.savepoint()
    with lan.unplug(mixed):
        wait_for_carrier(second, 0)
        pulled_out = mixed.savepoint()
        plugged_in.restore()
        wait_for_carrier(second, 0)
        before = [nic.counters["in"]["frames"] for nic in mixed.nics]
        assert not neighbour.run(ping, check=False).ok
        assert [nic.counters["in"]["frames"] for nic in mixed.nics] == before
    pulled_out.restore()
    wait_for_carrier(second, 1)
    neighbour.wait_until(ping)


@pytest.fixture(scope="module")
def prepared(mixed):
    mixed.write_text("/root/prepared", "")
    return mixed


def test_cards_that_are_taken_down(prepared, neighbour):
    check_cards(prepared, neighbour)
    for nic in prepared.nics:
        prepared.run(["ip", "link", "set", nic.device, "down"])


def test_a_savepoint_that_is_loaded_brings_them_back(prepared, neighbour):
    assert prepared.read_text("/root/prepared") == ""
    for nic in prepared.nics:
        assert prepared.read_text(f"/sys/class/net/{nic.device}/carrier") == "1\n"
    check_cards(prepared, neighbour)
