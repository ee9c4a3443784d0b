"""Which service sets a guest's cards up when it boots, and the file that has it do so."""

from __future__ import annotations

import os
import subprocess
from configparser import ConfigParser

import pytest

from pytest_kvm.errors import GuestError
from pytest_kvm.machine import network_services
from pytest_kvm.machine.network_services import (
    CardNetwork,
    ask_for_lease,
    find_service,
    release_cards,
    settings_file,
)
from tests.fakes import output

MAC = "52:54:00:00:00:01"
FIXED = CardNetwork(MAC, 9000, ["10.1.0.5/24", "fd00::5/64"], dhcp=False)
LEASED = CardNetwork(MAC, 1500, [], dhcp=True)


@pytest.mark.parametrize(
    ("active", "interfaces", "service"),
    [
        ("systemd-networkd", "", "systemd-networkd"),
        ("NetworkManager systemd-networkd", "", "NetworkManager"),
        ("NetworkManager idle systemd-networkd", "", "systemd-networkd"),
        ("networking systemd-networkd", "source /etc/network/interfaces.d/*", "systemd-networkd"),
        ("networking", "source /etc/network/interfaces.d/*", "ifupdown"),
        ("networking", "  source-directory interfaces.d", "ifupdown"),
        ("networking", "source /etc/network/interfaces.d/*.cfg", ""),
        ("networking", "source-directory /run/network/interfaces.d", ""),
        ("networking", "# source /etc/network/interfaces.d/*", ""),
        ("networking", None, ""),
        ("wicked", "", ""),
    ],
)
def test_the_service_is_the_one_that_runs(tmp_path, active, interfaces, service):
    systemctl = tmp_path / "systemctl"
    systemctl.write_text(
        f'#!/bin/sh\nfor unit in {active}; do [ "$unit.service" != "$3" ] || exit 0; done\nexit 3\n'
    )
    systemctl.chmod(0o755)
    nmcli = tmp_path / "nmcli"
    state = "unmanaged" if "idle" in active else "connected"
    nmcli.write_text(f"#!/bin/sh\nprintf '%s\\n' loopback:unmanaged wifi:connected ethernet:{state}\n")
    nmcli.chmod(0o755)
    if interfaces is not None:
        (tmp_path / "interfaces").write_text(f"# interfaces(5)\n{interfaces}\n")
    script = network_services._FIND.replace("/etc/network/interfaces", str(tmp_path / "interfaces"))
    path = f"{tmp_path}:{os.environ['PATH']}"
    ended = subprocess.run(
        ["sh", "-c", script], env={"PATH": path}, capture_output=True, text=True, check=True
    )
    assert ended.stdout.strip() == service


def test_a_guest_without_systemd_has_no_service_that_is_known(machine, shell, tmp_path):
    ended = subprocess.run(
        ["/bin/sh", "-c", network_services._FIND],
        env={"PATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
    )
    shell.expect("is-active", ended.stdout)
    assert find_service(machine) is None


def test_network_manager_has_let_go_of_a_card_when_it_says_so(machine, shell):
    shell.expect(
        "nmcli",
        output("", exit_code=8, stderr="Error: NetworkManager is not running."),
        "100 (connected)\n",
        "10 (unmanaged)\n",
    )
    shell.expect("is-failed", "")
    release_cards(machine, [MAC])
    *asked, waited = shell.ran
    assert len(asked) == 3
    assert all(line.endswith(MAC) for line in asked)
    assert "NetworkManager-wait-online" in waited


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        (output("", exit_code=127, stderr="sh: 1: nmcli: not found"), "nmcli: not found"),
        ("10 (unmanaged)\n", "the states of 2 cards are 10 (unmanaged)"),
    ],
)
def test_a_card_that_network_manager_holds_cannot_be_frozen(machine, shell, monkeypatch, answer, told):
    monkeypatch.setattr(network_services, "_RELEASED_WITHIN", 0.0)
    shell.expect("nmcli", answer)
    with pytest.raises(GuestError) as refused:
        release_cards(machine, [MAC, "52:54:00:00:00:02"])
    assert told in str(refused.value)


def test_networkd_knows_a_card_by_its_address():
    path, mode, text = settings_file("systemd-networkd", FIXED)
    assert (path, mode) == ("/etc/systemd/network/05-pytest-kvm-525400000001.network", 0o644)
    assert text.splitlines() == [
        *("[Match]", f"MACAddress={MAC}", "[Link]", "MTUBytes=9000", "RequiredForOnline=no"),
        *("[Network]", "Address=10.1.0.5/24", "Address=fd00::5/64"),
    ]
    leased = settings_file("systemd-networkd", LEASED).text
    assert leased.endswith("[Network]\nDHCP=ipv4\n[DHCPv4]\nUseRoutes=false\n")
    assert ask_for_lease("systemd-networkd", LEASED) == []


@pytest.mark.parametrize(
    ("card", "methods"),
    [
        (FIXED, ("manual", "manual")),
        (LEASED, ("auto", "link-local")),
        (CardNetwork(MAC, 576, ["10.1.0.5/24"], dhcp=False), ("manual", "disabled")),
    ],
    ids=["fixed", "leased", "too narrow for IPv6"],
)
def test_network_manager_knows_a_card_by_its_name(card, methods):
    path, mode, text = settings_file("NetworkManager", card)
    assert path == "/etc/NetworkManager/system-connections/pytest-kvm-525400000001.nmconnection"
    assert mode == 0o600, "NetworkManager does not read what others can read"
    profile = ConfigParser()
    profile.read_string(text)
    assert profile["connection"]["interface-name"] == "{card}"
    assert profile["ethernet"]["mtu"] == str(card.mtu)
    assert (profile["ipv4"]["method"], profile["ipv6"]["method"]) == methods
    assert [profile[each].get("address1") for each in ("ipv4", "ipv6")] == [*card.addresses, None, None][:2]
    load, check, _, activate = ask_for_lease("NetworkManager", card)
    assert (load[-1], check[-1], activate[-3:]) == (
        *(path, profile["connection"]["id"]),
        ["{card}", "managed", "yes"],
    )


def test_ifupdown_waits_for_no_lease():
    path, _, text = settings_file("ifupdown", FIXED)
    assert path == "/etc/network/interfaces.d/pytest-kvm-525400000001", "run-parts(8) allows no dots"
    assert (
        text
        == """\
auto {card}
iface {card} inet static
    pre-up ip link set dev {card} mtu 9000
    address 10.1.0.5/24
iface {card} inet6 static
    pre-up ip link set dev {card} mtu 9000
    address fd00::5/64
    dad-attempts 0
"""
    )
    assert (
        settings_file("ifupdown", LEASED).text
        == """\
allow-hotplug {card}
iface {card} inet dhcp
    pre-up ip link set dev {card} mtu 1500
    metric 4096
"""
    )
    assert ask_for_lease("ifupdown", LEASED) == [["systemctl", "--no-block", "start", "ifup@{card}.service"]]
