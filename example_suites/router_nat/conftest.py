"""A client and a server on two segments, and a router between them."""

from __future__ import annotations

from pathlib import Path

import pytest

import pytest_kvm as kvm

HERE = Path(__file__).parent


@kvm.network(scope="module")
def inside():
    return kvm.NetworkSpec(subnet="192.168.1.0/24", subnet6="fd00:1::/64")


@kvm.network(scope="module")
def outside():
    return kvm.NetworkSpec(subnet="203.0.113.0/24", subnet6="fd00:2::/64")


@kvm.guest(scope="module")
def client(inside):
    return kvm.GuestSpec(memory="512MiB", vcpus=1, nics=[kvm.Nic(inside)])


@kvm.guest(scope="module")
def router(inside, outside):
    return kvm.GuestSpec(
        memory="512MiB",
        vcpus=1,
        nics=[
            kvm.Nic(inside, address="192.168.1.1", address6="fd00:1::1"),
            kvm.Nic(outside, address="203.0.113.1", address6="fd00:2::1"),
        ],
    )


@kvm.guest(scope="module")
def server(outside):
    return kvm.GuestSpec(memory="512MiB", vcpus=1, nics=[kvm.Nic(outside)])


@pytest.fixture(scope="module", autouse=True)
def routes(inside, outside, client, router, server):
    """The router forwards what its rules let pass; the others know that the way leads through it."""
    router.run(["sysctl", "net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1"])
    router.put(HERE / "router.nft", "/etc/nftables.conf")
    router.run(["nft", "--file", "/etc/nftables.conf"])
    client.run(["ip", "route", "add", "default", "via", router.address(inside)])
    client.run(["ip", "route", "add", "default", "via", router.address(inside, version=6)])
    server.run(["ip", "route", "add", "192.168.1.0/24", "via", router.address(outside)])
    server.run(["ip", "route", "add", "fd00:1::/64", "via", router.address(outside, version=6)])


@pytest.fixture(scope="module", autouse=True)
def web(server):
    """Two web servers on the server, of which the router lets others see one."""
    server.put(HERE / "who_asks.py", "/root/who_asks.py")
    for port in (80, 8080):
        server.run(["systemd-run", f"--unit=web-{port}", "python3", "/root/who_asks.py", str(port)])
        server.wait_for_port(port)
