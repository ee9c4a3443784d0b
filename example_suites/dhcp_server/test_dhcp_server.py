"""A DHCP server (systemd's) leases addresses, names a router and a name server, and keeps reservations."""

from __future__ import annotations

import ipaddress
import json

import pytest_kvm as kvm

POOL = {ipaddress.IPv4Address("10.1.0.100") + number for number in range(50)}

RESERVATION = """
[DHCPServerStaticLease]
MACAddress={mac}
Address=10.1.0.42
"""


def leased_address(guest: kvm.Guest) -> ipaddress.IPv4Address:
    """Return the address of a guest's card; there is one."""
    command = ["ip", "-json", "-4", "address", "show", "dev", guest.nics[0].device]
    [card] = json.loads(guest.run(command).stdout)
    [address] = card["addr_info"]
    assert address.get("dynamic")
    return ipaddress.IPv4Address(address["local"])


def leases(server: kvm.Guest) -> set[ipaddress.IPv4Address]:
    """Return the addresses that the server has leased."""
    said = json.loads(server.run(["networkctl", "--json=short", "status", server.nics[0].device]).stdout)
    return {ipaddress.IPv4Address(bytes(lease["Address"])) for lease in said["DHCPServer"]["Leases"]}


def test_the_client_has_an_address_of_the_pool(server, client):
    address = leased_address(client)
    assert address in POOL
    client.run(["ping", "-c", "1", "10.1.0.1"])
    assert address in leases(server)


def test_it_is_told_a_router_and_a_name_server(client):
    [route] = json.loads(client.run(["ip", "-json", "route", "show", "default"]).stdout)
    assert route["gateway"] == "10.1.0.1"
    assert client.run(["resolvectl", "dns", client.nics[0].device]).stdout.split()[-1] == "10.1.0.1"


def test_a_second_client_has_another_address(lan, client, kvm_guests):
    spec = kvm.GuestSpec(memory="512MiB", vcpus=1, nics=[kvm.Nic(lan, dhcp=True)])
    second = kvm_guests.boot(spec, name="second")
    second.wait_until(f"ip -4 -brief address show dev {second.nics[0].device} | grep -q 10.1.0.")
    assert leased_address(second) in POOL - {leased_address(client)}


def test_a_reservation_is_kept(server, client):
    card = client.nics[0]
    reservation = RESERVATION.format(mac=card.mac)
    server.write_text("/etc/systemd/network/00-lan.network", reservation, append=True)
    server.run(["networkctl", "reload"])
    client.run(["networkctl", "reconfigure", card.device])
    client.wait_until(f"ip -4 -brief address show dev {card.device} | grep -q 10.1.0.42/24")


def test_it_was_for_one_test(server, client):
    assert leased_address(client) in POOL
    assert leases(server) == {leased_address(client)}
    assert "10.1.0.42" not in server.read_text("/etc/systemd/network/00-lan.network")
