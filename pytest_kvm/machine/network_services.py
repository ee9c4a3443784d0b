"""The service that sets up a guest's network cards when it boots: which it is, and the file that it reads.

A clone gets its addresses from the renewal script, at once. The file is for its
next boot. The services are systemd.network(5), nm-settings-keyfile(5) and
Debian's interfaces(5).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from ipaddress import ip_address, ip_interface
from typing import TYPE_CHECKING, Literal, NamedTuple, cast

from pytest_kvm.errors import GuestError
from pytest_kvm.waiting import NotYet, wait_until

if TYPE_CHECKING:
    from pytest_kvm.machine.machine import Machine

NetworkService = Literal["NetworkManager", "systemd-networkd", "ifupdown"]

CARD = "{card}"
"""Stands for the name of a card, which only the guest knows."""

_FIND = """\
manages_cards() {
    systemctl is-active --quiet NetworkManager.service &&
    LC_ALL=C nmcli --terse --fields TYPE,STATE device | grep '^ethernet:' | grep -qv ':unmanaged$'
}
if manages_cards; then
    echo NetworkManager
elif systemctl is-active --quiet systemd-networkd.service; then
    echo systemd-networkd
elif systemctl is-active --quiet networking.service &&
    grep -Eq '^\\s*source(-directory)?\\s+(/etc/network/)?interfaces\\.d(/\\*)?\\s*$' /etc/network/interfaces
then
    echo ifupdown
fi
"""
"""NetworkManager may be there for other devices and leave all cards alone, as on Ubuntu's servers."""
_CARDS = """\
for card in /sys/class/net/*; do
    [ ! -e "$card/device" ] || echo "$(cat "$card/address") ${card##*/}"
done
"""
"""Prints the MAC address and the name of each card; bridges and VLANs are no cards."""
_TIDY = """\
set -e
for name in "$@"; do
    case $(nmcli --get-values GENERAL.STATE device show "$name") in "10 "*) ;; *) exit ;; esac
    settings=/proc/sys/net/ipv6/conf/$name/addr_gen_mode
    [ ! -e "$settings" ] || echo 0 >"$settings"
    ip link set dev "$name" down
    ip address flush dev "$name"
    echo "$name"
done
"""
"""Prints cards that NetworkManager holds no more (10 is NM_DEVICE_STATE_UNMANAGED), up to the first it holds.

It leaves them up, and has taken link-local addresses from the kernel's hands: all clones would have one."""
_WAIT_AGAIN = """\
! systemctl is-failed --quiet NetworkManager-wait-online.service ||
systemctl restart NetworkManager-wait-online.service
"""
_MADE_UP = "/run/"
_RELEASED_WITHIN = 30.0
_SMALLEST_MTU6 = 1280


class CardNetwork(NamedTuple):
    """Settings of a network card on a segment."""

    mac: str
    mtu: int
    addresses: Sequence[str]
    """Fixed addresses with their prefix lengths."""
    dhcp: bool
    """Whether the service asks for an IPv4 address."""
    gateways: Sequence[str] = ()
    """Addresses of routers to everywhere."""
    metric: int = 0
    """Of the routes to them: of several routers the one with the smallest metric is used."""


class SettingsFile(NamedTuple):
    """A file that a service reads when the guest boots."""

    path: str
    mode: int
    text: str
    """With :data:`CARD` for the card's name."""


def find_service(machine: Machine) -> NetworkService | None:
    """Return the service that sets the guest's cards up when it boots; None if it is none that we know."""
    found = machine.shell.run(_FIND, user="root", timeout=machine.timeouts.command).stdout.strip()
    return cast("NetworkService", found) if found else None


def release_cards(machine: Machine, macs: Sequence[str]) -> None:
    """Make NetworkManager leave cards alone until the guest boots.

    It would ask for addresses on each card that it has no settings for, and after
    45 seconds without an answer remove the addresses that the renewal script has set.
    Cards that the guest's owner has set up stay as they are.

    Raises:
        GuestError: It did not let go of a card.
    """
    wait = partial(
        wait_until,
        describe=f"NetworkManager of {machine.name} to leave its cards on segments alone",
        timeout=_RELEASED_WITHIN,
        every=0.1,
        error=GuestError,
        clock=machine.domain.clock,
    )
    states = wait(partial(_states_of_cards, machine, macs))
    profiles = _from_nmcli(machine, "DEVICE,FILENAME", "connection", "show", "--active")
    released: list[str] = []
    for name, state in states.items():
        # Settings that NetworkManager has made up are below /run; "externally": without it, by ip(8).
        if "externally" in state or not profiles.get(name, _MADE_UP).startswith(_MADE_UP):
            continue
        machine.shell.run(["nmcli", "device", "set", name, "managed", "no"], user="root")
        released += [name] if state != "unmanaged" else []
    wait(partial(_tidy, machine, released))
    # It has failed if the cards were there at the boot. Not checked: something else may be missing, too.
    machine.shell.run(_WAIT_AGAIN, user="root", check=False)


def _states_of_cards(machine: Machine, macs: Sequence[str]) -> dict[str, str]:
    """Return NetworkManager's states of the cards that have these MAC addresses, by name."""
    cards = dict(line.split() for line in machine.shell.run(_CARDS, user="root").stdout.splitlines())
    names = [name for mac, name in cards.items() if mac in macs]
    states = _from_nmcli(machine, "DEVICE,STATE", "device")
    known = {name: states[name] for name in names if name in states}
    if len(known) < len(macs):
        raise NotYet(f"it has noticed {len(known)} of {len(macs)}")
    return known


def _from_nmcli(machine: Machine, fields: str, *words: str) -> dict[str, str]:
    command = ["nmcli", "--terse", "--fields", fields, *words]
    lines = machine.shell.run(command, user="root", env={"LC_ALL": "C"}).stdout.splitlines()
    return {name: value for name, _, value in (line.partition(":") for line in lines)}


def _tidy(machine: Machine, released: Sequence[str]) -> None:
    tidied = machine.shell.run(["sh", "-c", _TIDY, "sh", *released], user="root").stdout.split()
    if len(tidied) < len(released):
        raise NotYet(f"it holds {released[len(tidied)]}")


def settings_file(service: NetworkService, card: CardNetwork) -> SettingsFile:
    """Return the file that has a service set a card up when the guest boots."""
    name = _name_of(card)
    if service == "NetworkManager":
        path = f"/etc/NetworkManager/system-connections/{name}.nmconnection"
        return SettingsFile(path, 0o600, _nmconnection(card, name))
    if service == "systemd-networkd":
        return SettingsFile(f"/etc/systemd/network/05-{name}.network", 0o644, _network_unit(card))
    return SettingsFile(f"/etc/network/interfaces.d/{name}", 0o644, _interfaces(card))


def ask_for_lease(service: NetworkService, card: CardNetwork) -> list[list[str]]:
    """Return the commands that have a service ask for an address, once the settings are written.

    There are none for systemd-networkd, which is restarted once for all cards.
    """
    if service == "NetworkManager":
        return [
            ["nmcli", "connection", "load", settings_file(service, card).path],
            ["nmcli", "connection", "show", _name_of(card)],  # load does not fail if the file is refused
            ["ip", "link", "set", "dev", CARD, "up"],
            ["nmcli", "device", "set", CARD, "managed", "yes"],
        ]
    if service == "ifupdown":
        return [["systemctl", "--no-block", "start", f"ifup@{CARD}.service"]]
    return []


def _name_of(card: CardNetwork) -> str:
    return "pytest-kvm-" + card.mac.replace(":", "")


def _network_unit(card: CardNetwork) -> str:
    lines = ["[Match]", f"MACAddress={card.mac}", "[Link]", f"MTUBytes={card.mtu}", "RequiredForOnline=no"]
    lines += ["[Network]", *(f"Address={each}" for each in card.addresses)]
    lines += ["DHCP=ipv4", "[DHCPv4]", "UseRoutes=false"] if card.dhcp else []
    for each in card.gateways:
        lines += ["[Route]", f"Gateway={each}", f"Metric={card.metric}"]
    return "\n".join(lines) + "\n"


def _nmconnection(card: CardNetwork, name: str) -> str:
    # Not by its MAC address: until the guest boots, QEMU's card has that of the template.
    lines = ["[connection]", f"id={name}", "type=ethernet", f"interface-name={CARD}"]
    lines += ["autoconnect-priority=999", "[ethernet]", f"mtu={card.mtu}"]
    # NetworkManager would raise a smaller MTU, for IPv6.
    without6 = "link-local" if card.mtu >= _SMALLEST_MTU6 else "disabled"
    for version, without in ((4, "disabled"), (6, without6)):
        addresses = [each for each in card.addresses if ip_interface(each).version == version]
        method = "manual" if addresses else "auto" if card.dhcp and version == 4 else without
        gateways = [each for each in card.gateways if ip_address(each).version == version]
        never = "false" if gateways else "true"
        lines += [f"[ipv{version}]", f"method={method}", f"never-default={never}", "ignore-auto-dns=true"]
        lines += [line for each in gateways for line in (f"gateway={each}", f"route-metric={card.metric}")]
        lines += [f"address{number}={each}" for number, each in enumerate(addresses, start=1)]
    return "\n".join(lines) + "\n"


def _interfaces(card: CardNetwork) -> str:
    # A boot waits for cards that are "auto", but not for those that are "allow-hotplug".
    lines = [f"{'allow-hotplug' if card.dhcp else 'auto'} {CARD}"]
    mtu = f"    pre-up ip link set dev {CARD} mtu {card.mtu}"
    for each in card.addresses:
        address = ip_interface(each)
        family, no_wait = ("inet6", ["    dad-attempts 0"]) if address.version == 6 else ("inet", [])
        lines += [f"iface {CARD} {family} static", mtu, f"    address {each}", *no_wait]
        for gateway in card.gateways:
            if ip_address(gateway).version == address.version:
                lines += [f"    gateway {gateway}", f"    metric {card.metric}"]
    # The client takes a default route, too. Without a metric, the control card could not have its own.
    lines += [f"iface {CARD} inet dhcp", mtu, "    metric 4096"] if card.dhcp else []
    return "\n".join(lines) + "\n"
