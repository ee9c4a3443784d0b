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

MAC = "52:54:00:00:00:01"
FIXED = CardNetwork(MAC, 9000, ["10.1.0.5/24", "fd00::5/64"], dhcp=False)
ROUTED = FIXED._replace(gateways=["10.1.0.1", "fd00::1"], metric=1025)
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


CARDS = f"52:54:00:00:00:09 ctl\n{MAC} ens1\n52:54:00:00:00:02 ens2\n"


def _released(machine, shell):
    release_cards(machine, [MAC, "52:54:00:00:00:02"])
    return [line.split()[3] for line in shell.ran if line.startswith("nmcli device set")]


def _expect(shell, *states, profiles="ctl:/etc/NetworkManager/system-connections/ctl.nmconnection\n"):
    shell.expect("/address", CARDS)
    shell.expect("DEVICE,STATE", *(f"lo:unmanaged\nctl:connected\n{each}" for each in states))
    shell.expect("DEVICE,FILENAME", profiles)
    shell.expect("nmcli device set", "")


def test_network_manager_has_let_go_of_a_card_when_it_says_so(machine, shell):
    _expect(shell, "ens1:connecting (prepare)\n", "ens1:connecting (prepare)\nens2:disconnected\n")
    shell.expect("addr_gen_mode", "ens1\n", "ens1\nens2\n")
    shell.expect("is-failed", "")
    assert _released(machine, shell) == ["ens1", "ens2"]
    assert sum(line.endswith("sh ens1 ens2") for line in shell.ran) == 2


@pytest.mark.parametrize(
    ("state", "profile", "is_tidied"),
    [
        ("connecting (getting IP configuration)", "/run/NetworkManager/system-connections/Wired", True),
        ("disconnected", "", True),
        ("unmanaged", "", False),
    ],
)
def test_a_card_that_nobody_has_set_up_is_released(machine, shell, state, profile, is_tidied):
    _expect(shell, f"ens1:{state}\nens2:unmanaged\n", profiles=f"ens1:{profile}\n" if profile else "")
    shell.expect("addr_gen_mode", "ens1\n" if is_tidied else "")
    shell.expect("is-failed", "")
    assert _released(machine, shell) == ["ens1", "ens2"]
    assert any(line.endswith("sh ens1") for line in shell.ran) is is_tidied


@pytest.mark.parametrize(
    ("state", "profile"),
    [
        ("connected", "/etc/NetworkManager/system-connections/mine.nmconnection"),
        ("connected (externally)", "/run/NetworkManager/system-connections/ens1.nmconnection"),
    ],
)
def test_a_card_that_the_spec_has_set_up_stays_as_it_is(machine, shell, state, profile):
    _expect(shell, f"ens1:{state}\nens2:unmanaged\n", profiles=f"ens1:{profile}\n")
    shell.expect("addr_gen_mode", "")
    shell.expect("is-failed", "")
    assert _released(machine, shell) == ["ens2"]


def test_a_card_that_network_manager_holds_cannot_be_frozen(machine, shell, monkeypatch):
    monkeypatch.setattr(network_services, "_RELEASED_WITHIN", 0.0)
    _expect(shell, "ens1:connected\nens2:connected\n")
    shell.expect("addr_gen_mode", "ens1\n")
    with pytest.raises(GuestError, match="NetworkManager of .* it holds ens2"):
        _released(machine, shell)


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


def test_each_service_knows_the_routers_of_a_card():
    unit = settings_file("systemd-networkd", ROUTED).text
    assert unit.endswith("[Route]\nGateway=10.1.0.1\nMetric=1025\n[Route]\nGateway=fd00::1\nMetric=1025\n")
    profile = ConfigParser()
    profile.read_string(settings_file("NetworkManager", ROUTED).text)
    for section, gateway in (("ipv4", "10.1.0.1"), ("ipv6", "fd00::1")):
        assert (profile[section]["gateway"], profile[section]["route-metric"]) == (gateway, "1025")
        assert profile[section]["never-default"] == "false"
    stanzas = settings_file("ifupdown", ROUTED).text.split("iface ")
    assert [stanza.split("gateway ")[1].split() for stanza in stanzas[1:]] == [
        ["10.1.0.1", "metric", "1025"],
        ["fd00::1", "metric", "1025"],
    ]
