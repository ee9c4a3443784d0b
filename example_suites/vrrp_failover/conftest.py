"""Two routers that share an address on each of two segments, a client and a server behind these addresses."""

from __future__ import annotations

from pathlib import Path

import pytest

import pytest_kvm as kvm

CONFIG = Path(__file__).with_name("keepalived.conf").read_text(encoding="utf-8")


@kvm.network(scope="module")
def inside():
    return kvm.NetworkSpec(subnet="10.2.0.0/24", subnet6=None)


@kvm.network(scope="module")
def outside():
    return kvm.NetworkSpec(subnet="10.3.0.0/24", subnet6=None)


def lab_guest(*networks):
    """All have the same packages, so that they are clones of one template and its derivatives."""
    nics = [kvm.Nic(network) for network in networks]
    return kvm.GuestSpec(memory="512MiB", vcpus=1, packages=["keepalived"], nics=nics)


@kvm.guest(scope="module")
def first(inside, outside):
    return lab_guest(inside, outside)


@kvm.guest(scope="module")
def second(inside, outside):
    return lab_guest(inside, outside)


@kvm.guest(scope="module")
def client(inside):
    return lab_guest(inside)


@kvm.guest(scope="module")
def server(outside):
    return lab_guest(outside)


@pytest.fixture(scope="module", autouse=True)
def configuration(first, second, client, server):
    """The first router is the better one; client and server know the shared addresses only."""
    for router, state, priority in ((first, "MASTER", 150), (second, "BACKUP", 100)):
        router.run(["sysctl", "net.ipv4.ip_forward=1"])
        inside, outside = router.nics
        text = CONFIG.replace("STATE", state).replace("PRIORITY", str(priority))
        text = text.replace("INSIDE", inside.device).replace("OUTSIDE", outside.device)
        router.write_text("/etc/keepalived/keepalived.conf", text)
    client.run(["ip", "route", "add", "default", "via", "10.2.0.1"])
    server.run(["ip", "route", "add", "default", "via", "10.3.0.1"])


@pytest.fixture(autouse=True)
def routers(first, second):
    """Both run, and the first has the addresses.

    Each test begins them, because a reset of two guests is not the same moment for both.
    """
    first.run(["systemctl", "start", "keepalived.service"])
    first.wait_until("ip -4 -oneline address | grep -F ' 10.2.0.1/'")
    second.run(["systemctl", "start", "keepalived.service"])
