"""A router that translates IPv4 addresses, routes IPv6, and lets pass what it should."""

from __future__ import annotations

import pytest

import pytest_kvm as kvm


def ask(guest: kvm.Guest, address: str, *, port: int = 80) -> kvm.CommandResult:
    host = f"[{address}]" if ":" in address else address
    command = ["curl", "--silent", "--show-error", "--max-time", "60", f"http://{host}:{port}/"]
    return guest.run(command, check=False)


def address_seen(answer: kvm.CommandResult) -> str:
    """Return the address that the server saw."""
    return answer.check().stdout


def is_unreachable(asked: kvm.CommandResult) -> bool:
    """Say whether curl was told that it cannot connect."""
    return asked.exit_code == 7


def test_by_ipv4_the_server_sees_the_router(outside, client, router, server):
    assert address_seen(ask(client, server.address(outside))) == router.address(outside)


def test_by_ipv6_the_server_sees_the_client(inside, outside, client, server):
    answer = ask(client, server.address(outside, version=6))
    assert address_seen(answer) == client.address(inside, version=6)


@pytest.mark.parametrize("version", [4, 6])
def test_only_port_80_passes(outside, client, router, server, version):
    address = server.address(outside, version=version)
    assert ask(router, address, port=8080).ok, "the server answers its neighbours"
    assert is_unreachable(ask(client, address, port=8080))
    assert ask(client, address, port=80).ok


@pytest.mark.parametrize("version", [4, 6])
def test_nobody_gets_in_from_outside(inside, client, router, server, version):
    client.run(["systemd-run", "python3", "-m", "http.server", "--bind", "::", "80"])
    client.wait_for_port(80)
    address = client.address(inside, version=version)
    assert ask(router, address).ok, "the client answers its neighbours"
    assert is_unreachable(ask(server, address))


def test_without_the_router_nothing_passes(outside, client, router, server):
    router.power_off()
    for version in (4, 6):
        assert is_unreachable(ask(client, server.address(outside, version=version)))


def test_the_next_test_has_a_router(outside, client, router, server):
    assert address_seen(ask(client, server.address(outside))) == router.address(outside)
