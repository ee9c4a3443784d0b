"""Guests on a segment with several cards; whatever is done to a guest, it stays on its segment."""

from __future__ import annotations

from dataclasses import replace

import pytest

import pytest_kvm as kvm
from tests.dhcp_server import DHCP_SERVER
from tests.guest_specs import SMALL

MACHINES: set[str] = set()
"""UUIDs of the machines that were rebooted."""


@kvm.network(scope="module")
def lan():
    return kvm.NetworkSpec(subnet="10.1.0.0/24", subnet6="fd00:1::/64")


@kvm.guest(scope="module")
def left(lan):
    return replace(SMALL, nics=[kvm.Nic(lan), kvm.Nic(lan, address="10.1.0.10", link="down"), kvm.Nic(lan)])


@kvm.guest(scope="module")
def right(lan):
    return replace(SMALL, nics=[kvm.Nic(lan, address="10.1.0.11"), kvm.Nic(lan, dhcp=False), kvm.Nic(lan)])


@pytest.fixture
def pair(left, right):
    return left, right


def ping(guest, target, *options):
    guest.run(["ping", "-c", "1", "-W", "20", *options, target])


def ping_by_name(pair):
    for here, there in (pair, pair[::-1]):
        ping(here, there.name, "-4")
        ping(here, there.name, "-6")


def addresses(nic):
    shown = nic.guest.run(["ip", "-oneline", "-4", "address", "show", "dev", nic.device]).stdout
    return [line.split()[3] for line in shown.splitlines()]


def link_local(nic):
    argv = ["ip", "-oneline", "-6", "address", "show", "scope", "link", "dev", nic.device]
    return nic.guest.run(argv).stdout.split()[3].partition("/")[0]


def state(nic):
    return nic.guest.read_text(f"/sys/class/net/{nic.device}/operstate").strip()


def check_cards(pair):
    """Check that the addresses which specs name are these cards', and the others' follow in order.

    Whether a card without a carrier has its address depends on the system.
    """
    left, right = pair
    assert str(left.nics[1].address) == "10.1.0.10"
    assert [addresses(nic) for nic in left.nics[::2]] == [["10.1.0.12/24"], ["10.1.0.13/24"]]
    assert [addresses(nic) for nic in right.nics] == [["10.1.0.11/24"], [], ["10.1.0.14/24"]]
    assert [state(nic) for nic in (*left.nics, *right.nics)] == ["up", "down", "up", "up", "down", "up"]


def test_each_card_has_its_own_link_and_address(lan, pair):
    assert [nic.link for nic in lan.nics] == ["left", "left.2", "left.3", "right", "right.2", "right.3"]
    check_cards(pair)
    # Unlike IPv4 addresses, those of a link are answered for by one card, and from that card.
    mine, its = (guest.nics[2] for guest in pair)
    before = mine.counters["in"]["frames"]
    ping(mine.guest, f"{link_local(its)}%{mine.device}")
    assert mine.counters["in"]["frames"] > before
    ping_by_name(pair)


def test_tagged_frames_pass(pair):
    for number, guest in enumerate(pair, start=1):
        card = guest.nics[0].device
        guest.run(["ip", "link", "add", "link", card, "name", "v", "type", "vlan", "id", "100"])
        guest.run(["ip", "address", "add", f"192.168.100.{number}/24", "dev", "v"])
        guest.run(["ip", "link", "set", "v", "up"])
        assert guest.nics[0].device == card  # its VLAN has the same MAC address
    ping(pair[0], "192.168.100.2")


def test_a_savepoint_takes_the_addresses_back(pair):
    left, _ = pair
    with left.savepoint():
        left.run(["ip", "address", "flush", "dev", left.nics[0].device])
    ping_by_name(pair)


def test_reboots(pair):
    left, right = pair
    MACHINES.update(guest.machine.domain.uuid for guest in pair)
    left.reboot()
    right.reboot(hard=True)
    check_cards(pair)
    ping_by_name(pair)


def test_a_guest_that_was_off_is_on_its_segments_again(pair):
    left, _ = pair
    left.shutdown()
    left.power_on()
    MACHINES.add(left.machine.domain.uuid)
    check_cards(pair)
    ping_by_name(pair)


def test_a_card_that_asks_another_guest_for_its_address(lan, pair, kvm_guests):
    server, _ = pair
    arguments = [server.nics[0].device, "10.1.0.12", "10.1.0.100"]
    with server.start(["python3", "-c", DHCP_SERVER, *arguments]) as process:
        assert next(process.lines()) == "listening"
        client = kvm_guests.boot(replace(SMALL, nics=[kvm.Nic(lan, dhcp=True)]), name="client")
        client.wait_until(["sh", "-c", f"ip address show dev {client.nics[0].device} | grep 10.1.0.100/24"])
        ping(client, "10.1.0.12")
    with pytest.raises(kvm.SpecError, match="client has no fixed IPv4 address on the segment lan"):
        lan.address_of(client)


def test_small_packets(kvm_networks, kvm_guests):
    """An MTU that IPv6 does not accept."""
    narrow = kvm_networks.make(kvm.NetworkSpec(subnet6=None, mtu=576))
    spec = replace(SMALL, nics=[kvm.Nic(narrow)])
    one, other = kvm_guests.boot_all(spec, spec, names=["one", "other"])
    assert one.read_text(f"/sys/class/net/{one.nics[0].device}/mtu") == "576\n"
    ping(one, other.name)
    assert not one.run(["ping", "-c", "1", "-M", "do", "-s", "600", other.name], check=False).ok


def test_the_next_test_has_other_machines_with_the_same_addresses(pair):
    assert {guest.machine.domain.uuid for guest in pair}.isdisjoint(MACHINES)
    check_cards(pair)
    ping_by_name(pair)
