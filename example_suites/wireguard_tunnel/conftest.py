"""Two peers, a segment that nobody trusts, and a tunnel through it."""

from __future__ import annotations

from pathlib import Path

import pytest

import pytest_kvm as kvm

CONFIG = Path(__file__).with_name("wg0.conf").read_text(encoding="utf-8")
INNER = {"here": "10.9.0.1", "there": "10.9.0.2"}


@kvm.network(scope="module")
def untrusted():
    return kvm.NetworkSpec(subnet="198.51.100.0/24", subnet6=None)


def tunnel_end(untrusted):
    return kvm.GuestSpec(memory="512MiB", vcpus=1, packages=["wireguard-tools"], nics=[kvm.Nic(untrusted)])


@kvm.guest(scope="module")
def here(untrusted):
    return tunnel_end(untrusted)


@kvm.guest(scope="module")
def there(untrusted):
    return tunnel_end(untrusted)


@pytest.fixture(scope="module", autouse=True)
def tunnel(untrusted, here, there):
    """Each peer has a key of its own and knows the other's public key; nothing was sent yet."""
    make_key = "umask 077; wg genkey | tee /etc/wireguard/key | wg pubkey"
    keys = {peer: peer.run(make_key).stdout.strip() for peer in (here, there)}
    for peer, other in ((here, there), (there, here)):
        text = CONFIG.replace("OWN_INNER", INNER[peer.name]).replace("PEER_INNER", INNER[other.name])
        text = text.replace("PEER_KEY", keys[other]).replace("PEER_OUTER", other.address(untrusted))
        peer.write_text("/etc/wireguard/wg0.conf", text, mode=0o600)
        peer.run(["wg-quick", "up", "wg0"])
