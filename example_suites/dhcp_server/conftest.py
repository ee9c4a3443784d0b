"""A DHCP server, and a client whose card the plugin leaves alone."""

from __future__ import annotations

import pytest

import pytest_kvm as kvm

SERVER = """\
[Match]
Name={device}

[Network]
Address={address}/24
DHCPServer=yes

[DHCPServer]
PoolOffset=100
PoolSize=50
EmitRouter=yes
DNS={address}
"""

CLIENT = """\
[Match]
Name={device}

[Network]
DHCP=ipv4
"""


@kvm.network(scope="module")
def lan():
    """A segment for DHCP alone, which is IPv4."""
    return kvm.NetworkSpec(subnet="10.1.0.0/24", subnet6=None)


@kvm.guest(scope="module")
def server(lan):
    return kvm.GuestSpec(memory="512MiB", vcpus=1, nics=[kvm.Nic(lan, address="10.1.0.1")])


@kvm.guest(scope="module")
def client(lan):
    return kvm.GuestSpec(memory="512MiB", vcpus=1, nics=[kvm.Nic(lan, dhcp=False)])


def configure(guest: kvm.Guest, network: str) -> None:
    """Hand a card to the guest's systemd-networkd, which then sets its addresses in place of the plugin."""
    guest.write_text("/etc/systemd/network/00-lan.network", network)
    guest.run(["networkctl", "reload"])


@pytest.fixture(scope="module", autouse=True)
def lease(lan, server, client):
    """The server serves, and the client has all that comes with its first lease."""
    card, address = client.nics[0].device, server.address(lan)
    configure(server, SERVER.format(device=server.nics[0].device, address=address))
    configure(client, CLIENT.format(device=card))
    client.wait_until(f"ip route show default dev {card} | grep -q via")
    client.wait_until(f"resolvectl dns {card} | grep -q {address}")
