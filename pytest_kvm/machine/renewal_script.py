"""The guest's half of a renewal: sent there as text and run as root by the guest's own Python.

Its orders are lines of words, from standard input or, with an argument, from a
FIFO that it makes under that name and waits at. Texts are in base64; ``end``
is the last line.

Python 3.7 is enough. Few modules are imported: to import ``json``, ``pathlib``
or ``subprocess`` takes a translated guest tenths of a second.
"""

from __future__ import annotations

import binascii
import fcntl
import itertools
import os
import socket
import sys
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

_ADD_ENTROPY = 0x40085203
_RESEED = 0x5207
"""RNDADDENTROPY and RNDRESEEDCRNG of linux/random.h, as x86 and ARM encode them."""
_SET_HARDWARE_ADDRESS = 0x8924
_SET_MTU = 0x8922
_GET_FLAGS = 0x8913
_SET_FLAGS = 0x8914
_SET_ADDRESS = 0x8916
_SET_NETMASK = 0x891C
"""SIOCSIFHWADDR and so on of netdevice(7). SIOCSIFADDR of an IPv6 socket takes a prefix length, too."""
_IFF_UP = 1
_SETTINGS = 10
_CLOSE = 2_000_000
"""Nanoseconds."""
_ETHERNET = 1
_INET = 2
_HANGUP = 1
_SSHD_PID_FILE = "/run/sshd.pid"
_SSHD_WITHIN = 60.0
_HOST_KEY = "/etc/ssh/ssh_host_ed25519_key"
_LOOPBACK = ("127.0.0.1", "127.0.1.1", "::1")
_MAC_FOLDERS = (
    "/etc/systemd/network",
    "/run/systemd/network",
    "/etc/netplan",
    "/etc/udev/rules.d",
    "/etc/network/interfaces.d",
    "/etc/NetworkManager/system-connections",
)
"""Where network settings name a card by its address."""


def tell_time() -> None:
    """Print the wall clock, in nanoseconds."""
    print(time.time_ns(), flush=True)


def seed(data: str) -> None:
    """Mix random bytes into the kernel's generator and have it start afresh (random(4))."""
    raw = binascii.a2b_base64(data)
    header = (len(raw) * 8).to_bytes(4, sys.byteorder) + len(raw).to_bytes(4, sys.byteorder)
    with open("/dev/urandom", "wb", 0) as device:
        fcntl.ioctl(device, _ADD_ENTROPY, header + raw)
        fcntl.ioctl(device, _RESEED)


def move_clock(nanoseconds: str) -> None:
    """Set the wall clock forward or, with a negative number, back.

    By the monotonic clock, which goes on unchanged: the time from reading one
    to setting the other is an error, and the first time a restored guest does
    so that is tenths of a second.
    """
    wanted = _wall_from_monotonic() + int(nanoseconds)
    for _ in range(_SETTINGS):
        time.clock_settime_ns(time.CLOCK_REALTIME, time.monotonic_ns() + wanted)
        if abs(_wall_from_monotonic() - wanted) < _CLOSE:
            return


def _wall_from_monotonic() -> int:
    looks: list[tuple[int, int]] = []
    for _ in range(3):
        before = time.monotonic_ns()
        wall = time.time_ns()
        after = time.monotonic_ns()
        looks.append((after - before, wall - (before + after) // 2))
    return min(looks)[1]


def rename(name: str) -> None:
    """Change the host name, the kernel's and that of the files cloud-init wrote."""
    new = _text(name)
    old = os.uname().nodename
    _write("/proc/sys/kernel/hostname", new + "\n")
    _write("/etc/hostname", new + "\n")
    _write("/etc/hosts", renamed_hosts(_read("/etc/hosts"), old=old, new=new))


def renamed_hosts(text: str, *, old: str, new: str) -> str:
    """Return hosts(5) with a machine's own name replaced where it is a loopback address's."""
    names = {old: new, old.partition(".")[0]: new.partition(".")[0]}
    lines: list[str] = []
    for line in text.splitlines(keepends=True):
        address, *rest = line.split() or [""]
        own = address in _LOOPBACK and old in rest
        lines.append("\t".join([address, *(names.get(name, name) for name in rest)]) + "\n" if own else line)
    return "".join(lines)


def append_hosts(lines: str) -> None:
    """Append lines to the hosts file: names of other guests."""
    text = _read("/etc/hosts")
    ended = "" if text.endswith("\n") or not text else "\n"
    _write("/etc/hosts", text + ended + _text(lines))


def set_machine_id(identifier: str) -> None:
    """Write the machine id; who has read the old one keeps it until it is restarted."""
    _write("/etc/machine-id", identifier + "\n")
    copy = "/var/lib/dbus/machine-id"
    if os.path.isfile(copy) and not os.path.islink(copy):
        _write(copy, identifier + "\n")


def set_host_key(private: str, public: str) -> None:
    """Replace sshd's ed25519 key; return once sshd shows the new one.

    sshd reads its keys when it starts and does so anew on SIGHUP (sshd(8)): it
    removes its pid file and writes another when it listens. Without a pid file
    systemd listens, and starts an sshd for each connection.
    """
    _write(_HOST_KEY, _text(private), mode=0o600)
    _write(_HOST_KEY + ".pub", _text(public), mode=0o644)
    before = _identity(_SSHD_PID_FILE)
    if before is None:
        return
    os.kill(int(_read(_SSHD_PID_FILE)), _HANGUP)
    deadline = time.monotonic() + _SSHD_WITHIN
    while _identity(_SSHD_PID_FILE) in (None, before):
        if time.monotonic() > deadline:
            raise TimeoutError("sshd did not come back after SIGHUP")
        time.sleep(0.01)  # noqa: TID251 - in the guest, where nothing else tells


def set_hardware_address(old: str, new: str) -> None:
    """Give the card of one address another, and make the settings that name it follow.

    QEMU knows the new one already: it holds after a reboot, too.
    """
    octets = bytes.fromhex(new.replace(":", ""))
    try:
        card = card_of(old)
    except LookupError:
        card = card_of(new)  # it has been done, and a later order has failed
    _control(card, _SET_HARDWARE_ADDRESS, _ETHERNET.to_bytes(2, sys.byteorder) + octets)
    for folder in _MAC_FOLDERS:
        if os.path.isdir(folder):
            replace_in_files(folder, old=old.lower(), new=new.lower())


def set_network(mac: str, mtu: str, *addresses: str) -> None:
    """Set the MTU and the addresses of a card, until the guest boots.

    Args:
        mac: The card's MAC address.
        mtu: Bytes.
        addresses: Addresses with prefix lengths.
    """
    card = card_of(mac)
    _control(card, _SET_MTU, int(mtu).to_bytes(4, sys.byteorder))
    if addresses:
        _set_up(card, addresses)


def write_settings(mac: str, *file: str) -> None:
    """Write a file that has a service set a card up when the guest boots.

    Args:
        mac: The card's MAC address.
        file: Its path, its mode and its text, in which ``{card}`` is the card's name.
    """
    path, mode, text = file
    os.makedirs(os.path.dirname(path), exist_ok=True)
    _write(path, _text(text).replace("{card}", card_of(mac)), mode=int(mode, 8))


def run_for_card(mac: str, *command: str) -> None:
    """Run a command about a card; ``{card}`` is the card's name."""
    card = card_of(mac)
    _run([word.replace("{card}", card) for word in command])


def add_router(mac: str, *router: str) -> None:
    """Add a default route by a card, until the guest boots; without IPv6, there is none of that version.

    Args:
        mac: The card's MAC address.
        router: Its address, and the route's metric: of several the one with the smallest is used.
    """
    address, metric = router
    card = card_of(mac)
    version = "-6" if ":" in address else "-4"
    if version == "-4" or _has_ipv6(card):
        route = ["via", address, "dev", card, "metric", metric]
        _run(["ip", version, "route", "replace", "default", *route])


def _has_ipv6(card: str) -> bool:
    # A kernel without IPv6 has no settings for it; nor has a card whose MTU is too small for it.
    settings = "/proc/sys/net/ipv6/conf/" + card
    return os.path.isdir(settings) and _read(settings + "/disable_ipv6").strip() == "0"


def _set_up(card: str, addresses: Iterable[str]) -> None:
    has_ipv6 = _has_ipv6(card)
    if has_ipv6:
        # Each address is given once, and to look for another owner takes a second.
        _write("/proc/sys/net/ipv6/conf/" + card + "/accept_dad", "0\n")
    flags = int.from_bytes(_control(card, _GET_FLAGS, b"")[16:18], sys.byteorder)
    _control(card, _SET_FLAGS, (flags | _IFF_UP).to_bytes(2, sys.byteorder))
    for each in addresses:
        address, _, prefix = each.partition("/")
        if ":" in address:
            if not has_ipv6:
                continue
            _set_address6(card, address, prefix=int(prefix))
        else:
            netmask = 0xFFFFFFFF << (32 - int(prefix)) & 0xFFFFFFFF
            _control(card, _SET_ADDRESS, _as_inet(socket.inet_aton(address)))
            _control(card, _SET_NETMASK, _as_inet(netmask.to_bytes(4, "big")))


def _set_address6(card: str, address: str, *, prefix: int) -> None:
    index = int(_read("/sys/class/net/" + card + "/ifindex"))
    request = socket.inet_pton(socket.AF_INET6, address)
    request += prefix.to_bytes(4, sys.byteorder) + index.to_bytes(4, sys.byteorder)
    with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as any_socket:
        fcntl.ioctl(any_socket, _SET_ADDRESS, request)


def _as_inet(address: bytes) -> bytes:
    """Return an IPv4 address as a ``sockaddr_in`` (ip(7))."""
    return _INET.to_bytes(2, sys.byteorder) + bytes(2) + address + bytes(8)


def _control(card: str, request: int, value: bytes) -> bytes:
    """Make a request of netdevice(7) about a card; return the ``ifreq`` that the kernel leaves."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        return fcntl.ioctl(any_socket, request, card.encode().ljust(16, b"\0") + value.ljust(24, b"\0"))


def card_of(address: str, folder: str = "/sys/class/net") -> str:
    """Return the name of the network card that has an address; bridges and VLANs are no cards."""
    for card in os.listdir(folder):
        if not os.path.exists(folder + "/" + card + "/device"):
            continue
        if _read(folder + "/" + card + "/address").strip().lower() == address.lower():
            return card
    raise LookupError("no network card has the address " + address)


def replace_in_files(folder: str, *, old: str, new: str) -> None:
    """Replace a word, in whichever case it is written, in each file of a folder."""
    for name in os.listdir(folder):
        path = folder + "/" + name
        if not os.path.isfile(path) or os.path.islink(path):
            continue
        text = _read(path)
        at = text.lower().find(old)
        if at < 0:
            continue
        while at >= 0:
            text = text[:at] + new + text[at + len(old) :]
            at = text.lower().find(old, at + len(new))
        _write(path, text)


def renew_leases() -> None:
    """Have systemd-networkd ask for addresses anew, if it runs.

    It is restarted, because it tells DHCP servers who asks by the machine id
    that it read when it started.
    """
    if _exit_code(["systemctl", "--quiet", "is-active", "systemd-networkd.service"]) == 0:
        _run(["systemctl", "--quiet", "restart", "systemd-networkd.service"])


def _exit_code(command: list[str]) -> int:
    return os.spawnvp(os.P_WAIT, command[0], command)  # noqa: S606 - needs no shell


def _run(command: list[str]) -> None:
    exit_code = _exit_code(command)
    if exit_code != 0:
        raise OSError(" ".join(command) + ": exit code " + str(exit_code))


def _text(data: str) -> str:
    return binascii.a2b_base64(data).decode()


def _identity(path: str) -> tuple[int, int] | None:
    try:
        status = os.stat(path)
    except FileNotFoundError:
        return None
    return (status.st_ino, status.st_mtime_ns) if status.st_size else None


def _read(path: str) -> str:
    with open(path, errors="surrogateescape") as file:
        return file.read()


def _write(path: str, text: str, *, mode: int | None = None) -> None:
    """Write a file in place (it may be a mount point, and keeps its owner) and onto the disk."""
    flags = os.O_WRONLY | os.O_TRUNC | (0 if path.startswith("/proc/") else os.O_CREAT)
    descriptor = os.open(path, flags, 0o644 if mode is None else mode)
    with open(descriptor, "w", errors="surrogateescape") as file:
        if mode is not None:
            os.fchmod(descriptor, mode)
        file.write(text)
        if not path.startswith("/proc/"):
            file.flush()
            os.fsync(descriptor)


ORDERS: dict[str, Callable[..., None]] = {
    "time": tell_time,
    "seed": seed,
    "clock": move_clock,
    "hostname": rename,
    "hosts": append_hosts,
    "machine-id": set_machine_id,
    "host-key": set_host_key,
    "mac": set_hardware_address,
    "network": set_network,
    "router": add_router,
    "settings": write_settings,
    "run": run_for_card,
    "leases": renew_leases,
}


def obey(orders: Iterable[bytes]) -> None:
    """Carry out orders until the last."""
    for order in orders:
        word, *arguments = order.decode().split()
        if word == "end":
            return
        ORDERS[word](*arguments)
    raise EOFError("the orders broke off")


def prestart(path: str) -> None:
    """Wait at a FIFO for the orders; it is there once nothing is left to be prepared."""
    new = path + ".new"
    os.mkfifo(new, 0o600)
    # Opened for writing, too, it never ends.
    with open(os.open(new, os.O_RDWR), "rb") as orders:
        seed(binascii.b2a_base64(os.urandom(256)).decode())  # what ran once starts faster
        os.rename(new, path)
        first = orders.readline()
        os.unlink(path)
        obey(itertools.chain([first], orders))


if __name__ == "__main__":
    if len(sys.argv) > 1:
        prestart(sys.argv[1])
    else:
        obey(sys.stdin.buffer)
    os._exit(0)  # a prestarted interpreter that was just restored takes a while to tidy up
