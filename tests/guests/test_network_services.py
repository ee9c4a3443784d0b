"""Guests whose cards are set up by NetworkManager or ifupdown, or by nothing that the plugin knows."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address

import pytest

import pytest_kvm as kvm
from tests.dhcp_server import DHCP_SERVER
from tests.guest_specs import SMALL

NO_NETWORKD = "systemd.mask=systemd-networkd.service systemd.mask=systemd-networkd.socket"
STOP_NETWORKD = "systemctl stop systemd-networkd.socket systemd-networkd.service"
SERVICES = ["with_network_manager", "with_ifupdown"]


@kvm.network(scope="module")
def lan():
    return kvm.NetworkSpec(subnet="10.1.0.0/24", subnet6="fd00:1::/64", mtu=1400)


@kvm.guest(scope="module")
def server(lan):
    return replace(SMALL, nics=[kvm.Nic(lan, address="10.1.0.1")])


@kvm.guest(scope="module")
def with_network_manager(lan):
    """It has systemd-networkd, too, which is left out where NetworkManager is."""
    nics = [kvm.Nic(lan), kvm.Nic(lan, dhcp=True), kvm.Nic(lan, dhcp=False)]
    return replace(SMALL, packages=["network-manager"], nics=nics)


@kvm.guest(scope="module")
def with_ifupdown(lan):
    nics = [kvm.Nic(lan), kvm.Nic(lan, dhcp=True)]
    return replace(SMALL, packages=["ifupdown", "isc-dhcp-client"], nics=nics, cmdline_extra=NO_NETWORKD)


@kvm.guest(scope="module")
def with_neither(lan):
    return replace(SMALL, nics=[kvm.Nic(lan)], cloud_init=kvm.CloudInit(run_commands=[STOP_NETWORKD]))


def addresses(guest, number):
    show = ["ip", "-oneline", "address", "show", "scope", "global", "dev", guest.nics[number].device]
    return [line.split()[3] for line in guest.run(show).stdout.splitlines()]


def check_cards(guest, server, lan):
    """Check that each card has its addresses, and that frames come back."""
    fixed, leased = (nic.device for nic in guest.nics[:2])
    assert addresses(guest, 0) == list(guest.nics[0].addresses)
    guest.wait_until(["sh", "-c", f"ip address show dev {leased} | grep 10.1.0.100/24"])
    for card in (fixed, leased):
        assert guest.read_text(f"/sys/class/net/{card}/mtu") == "1400\n"
    routes = guest.run(["ip", "route", "show", "default"]).stdout
    assert not routes or (guest.name == "with_ifupdown" and "metric 4096" in routes)
    for address in ("server", server.address(lan)):
        guest.run(["ping", "-c", "1", "-W", "20", str(address)])


@pytest.mark.parametrize("service", SERVICES)
def test_a_clone_has_its_addresses_also_after_a_reboot(service, request, lan, server):
    guest = request.getfixturevalue(service)
    assert "banner" not in guest.boot_phases, "it was cloned, and did not boot"
    arguments = [server.nics[0].device, server.address(lan), "10.1.0.100", guest.nics[1].mac]
    with server.start(["python3", "-c", DHCP_SERVER, *arguments]) as process:
        assert next(process.lines()) == "listening"
        check_cards(guest, server, lan)
        assert guest.run(["systemctl", "--failed", "--quiet"]).stdout == ""
        guest.reboot()
        check_cards(guest, server, lan)


def test_network_manager_leaves_the_cards_of_a_clone_alone(with_network_manager):
    """It would ask for addresses there, and after 45 seconds without an answer remove those that are set."""
    card = with_network_manager.nics[0].device
    show = ["nmcli", "--get-values", "GENERAL.STATE,GENERAL.CONNECTION", "device", "show", card]
    assert with_network_manager.run(show, env={"LC_ALL": "C"}).stdout.split() == ["10", "(unmanaged)"]
    files = ["find", "/etc/NetworkManager", "/etc/systemd/network", "-name", "*pytest-kvm-*"]
    assert {path.rpartition(".")[2] for path in with_network_manager.run(files).stdout.split()} == {
        "nmconnection"
    }


def test_a_guest_that_would_lose_its_addresses_is_not_cloned(with_neither, server):
    assert "banner" in with_neither.boot_phases, "it was booted"
    assert addresses(with_neither, 0) == list(with_neither.nics[0].addresses)
    with_neither.run(["ping", "-c", "1", "-W", "20", "server"])


def test_the_kernel_chooses_link_local_addresses_by_the_cards_own(with_network_manager):
    """NetworkManager had chosen those of the template, which all clones would have."""
    fixed, _, left_alone = with_network_manager.nics
    show = ["ip", "-oneline", "-6", "address", "show", "scope", "link", "dev", fixed.device]
    octets = fixed.mac.split(":")
    expected = ip_address(f"fe80::5054:00ff:fe{octets[3]}:{octets[4]}{octets[5]}")
    assert with_network_manager.run(show).stdout.split()[3] == f"{expected}/64"
    assert "DOWN" in with_network_manager.run(["ip", "-brief", "link", "show", left_alone.device]).stdout
