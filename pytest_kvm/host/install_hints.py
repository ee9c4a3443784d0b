"""Table of what the project needs on the host, with the distribution packages that contain it.

Error messages and ``pytest-kvm doctor`` name packages from this table, and
set-up installs them. This module imports nothing but the standard library, so a
bare ``python3`` can run it before anything is installed::

    python3 pytest_kvm/host/install_hints.py --print      # the commands to run next on this machine
    python3 pytest_kvm/host/install_hints.py --missing    # the needs that are not met
"""

from __future__ import annotations

import argparse
import os
import pwd
import shlex
import shutil
from dataclasses import dataclass
from pathlib import Path

APT, DNF, ZYPPER, PACMAN = "apt-get", "dnf", "zypper", "pacman"

_INSTALL = {
    APT: "apt-get install --yes --no-install-recommends",
    DNF: "dnf install --assumeyes --setopt=install_weak_deps=False",
    ZYPPER: "zypper --non-interactive install --no-recommends",
    PACMAN: "pacman -S --noconfirm --needed",
}
_REFRESH = {APT: "apt-get update", PACMAN: "pacman -Sy"}
_SBIN = ("/usr/local/sbin", "/usr/sbin", "/sbin")


@dataclass(frozen=True)
class Need:
    """Something that the host must have, and the packages that contain it.

    Args:
        why: What it is for.
        packages: Package names by package manager.
        programs: Programs on PATH or in an ``sbin`` folder. The need is met if all of them are there.
        files: Path globs. The need is also met if one of them matches a file.
    """

    why: str
    packages: dict[str, tuple[str, ...]]
    programs: tuple[str, ...] = ()
    files: tuple[str, ...] = ()


def _packages(apt: str, dnf: str, zypper: str, pacman: str) -> dict[str, tuple[str, ...]]:
    """Return one table row, made of package names separated by spaces."""
    return {
        APT: tuple(apt.split()),
        DNF: tuple(dnf.split()),
        ZYPPER: tuple(zypper.split()),
        PACMAN: tuple(pacman.split()),
    }


NEEDS = {
    "qemu-system": Need(
        "runs the guests",
        _packages("qemu-system-x86", "qemu-system-x86-core", "qemu-x86", "qemu-system-x86"),
        programs=("qemu-system-x86_64",),
        files=("/usr/libexec/qemu-kvm",),
    ),
    "qemu-img": Need(
        "makes overlays and converts images",
        _packages("qemu-utils", "qemu-img", "qemu-img", "qemu-img"),
        programs=("qemu-img",),
    ),
    "libvirt-qemu-driver": Need(
        "libvirt's QEMU driver, loaded into the test process",
        _packages(
            "libvirt-daemon-driver-qemu",
            "libvirt-daemon-driver-qemu",
            "libvirt-daemon-driver-qemu",
            "libvirt",
        ),
        files=(
            "/usr/lib/*/libvirt/connection-driver/libvirt_driver_qemu.so",
            "/usr/lib*/libvirt/connection-driver/libvirt_driver_qemu.so",
        ),
    ),
    "libvirt-build": Need(
        "what libvirt's Python module is compiled with: PyPI has its source only",
        _packages(
            "libvirt-dev pkg-config gcc libc6-dev",
            "libvirt-devel pkgconf-pkg-config gcc",
            "libvirt-devel pkg-config gcc",
            "libvirt pkgconf gcc",
        ),
        files=("/usr/include/libvirt/libvirt.h",),
    ),
    "python-build": Need(
        "virtual environments and the headers of the system's Python",
        _packages("python3-dev python3-venv", "python3-devel", "python3-devel", "python"),
        files=("/usr/include/python3*/Python.h",),
    ),
    "mmdebstrap": Need(
        "builds Debian images from packages",
        _packages("mmdebstrap", "mmdebstrap", "mmdebstrap", "mmdebstrap"),
        programs=("mmdebstrap",),
    ),
    "zstd": Need(
        "packs the root file system that further packages are put into",
        _packages("zstd", "zstd", "zstd", "zstd"),
        programs=("zstd",),
    ),
    "base-tools": Need(
        "image builds, accounts, and the end of what a killed run has started",
        _packages(
            "coreutils findutils mount passwd tar util-linux",
            "coreutils findutils shadow-utils tar util-linux",
            "coreutils findutils shadow tar util-linux",
            "coreutils findutils shadow tar util-linux",
        ),
        programs=(
            *("chroot", "cp", "env", "install", "ln", "mkdir", "readlink", "rm", "touch", "true"),
            *("find", "mount", "setpriv", "sh", "tar", "unshare", "useradd"),
        ),
    ),
    "ssh-client": Need(
        "what a person types to look into a guest, and what `make bench` compares with",
        _packages("openssh-client", "openssh-clients", "openssh-clients", "openssh"),
        programs=("ssh",),
    ),
    "uefi-firmware": Need(
        "guests with firmware='uefi'",
        _packages("ovmf", "edk2-ovmf", "qemu-ovmf-x86_64", "edk2-ovmf"),
        files=("/usr/share/qemu/firmware/*.json",),
    ),
    "libpcap": Need(
        "filter expressions for the frames of a segment",
        _packages("libpcap0.8", "libpcap", "libpcap1", "libpcap"),
        files=("/usr/lib/*/libpcap.so.0.8", "/usr/lib*/libpcap.so.1"),
    ),
    "subordinate-ids": Need(
        "builds images as an ordinary user",
        _packages("uidmap", "shadow-utils-subid", "shadow", "shadow"),
        programs=("newuidmap", "newgidmap"),
    ),
}

TEST_NEEDS = {
    "libvirt-daemon": Need(
        "the session and system daemons that the project's own tests start",
        _packages("libvirt-daemon", "libvirt-daemon", "libvirt-daemon", "libvirt"),
        programs=("libvirtd",),
    ),
    "firewall": Need(
        "the libvirt networks that the project's own tests make",
        _packages("iptables", "iptables-nft", "iptables", "iptables-nft"),
        programs=("iptables", "ip6tables"),
    ),
    "openvswitch": Need(
        "the bridges of Open vSwitch that the project's own tests make",
        _packages("openvswitch-switch", "openvswitch", "openvswitch", "openvswitch"),
        programs=("ovs-vsctl", "ovs-vswitchd", "ovsdb-server"),
    ),
}
"""What the project's own tests need, in addition to :data:`NEEDS`."""

_ALL = NEEDS | TEST_NEEDS


def package_manager() -> str | None:
    """Return this machine's package manager, None if it has none of those in the table."""
    return next((name for name in _INSTALL if shutil.which(name)), None)


def is_met(need: str) -> bool:
    """Tell whether a need is met, by looking for what its package installs."""
    row = _ALL[need]
    if row.programs and all(map(_has_program, row.programs)):
        return True
    return any(any(Path("/").glob(pattern.removeprefix("/"))) for pattern in row.files)


def _has_program(name: str) -> bool:
    # Most users have no sbin folder on their PATH, but the image builds do.
    return shutil.which(name, path=os.pathsep.join([*os.get_exec_path(), *_SBIN])) is not None


def missing(*, for_tests: bool = False) -> list[str]:
    """Return the names of all needs that are not met; with ``for_tests`` the project's tests' needs, too."""
    return [need for need in (_ALL if for_tests else NEEDS) if not is_met(need)]


def why(need: str) -> str:
    """Say what a need is for."""
    return _ALL[need].why


def packages_for(needs: list[str], manager: str) -> list[str]:
    """Return the packages that meet ``needs``, each once."""
    return list(dict.fromkeys(package for need in needs for package in _ALL[need].packages[manager]))


def install_commands(needs: list[str]) -> list[list[str]]:
    """Return the commands that root has to run here so that ``needs`` are met, as argument lists.

    The list is empty if ``needs`` is, or if the table does not know this machine's package manager.
    """
    manager = package_manager()
    commands: list[list[str]] = []
    if needs and manager is not None:
        if manager in _REFRESH:
            commands.append(shlex.split(_REFRESH[manager]))
        commands.append([*shlex.split(_INSTALL[manager]), *packages_for(needs, manager)])
    return commands


ADD_QEMU_ACCOUNT = shlex.split(
    "useradd --system --user-group --no-create-home --home-dir /nonexistent"
    " --shell /usr/sbin/nologin libvirt-qemu"
)
"""Makes the user account that Debian's libvirt is compiled for.

Up to Debian 12 only ``libvirt-daemon-system`` makes this account, and we do not
need its daemon; later a package that we need makes it. But libvirt's QEMU
driver, run as root, refuses to start while ``getpwnam`` does not know the account
(``virQEMUDriverConfigNew``), whatever ``qemu.conf`` says."""


def has_qemu_account() -> bool:
    """Tell whether the account of :data:`ADD_QEMU_ACCOUNT` is there, or this distribution needs none."""
    if package_manager() != APT:
        return True
    try:
        pwd.getpwnam("libvirt-qemu")
    except KeyError:
        return False
    return True


def account_commands() -> list[list[str]]:
    """Return the commands that root has to run here so that libvirt starts as root.

    Call this after the packages are installed: on newer releases one of them makes the account.
    """
    return [] if os.geteuid() != 0 or has_qemu_account() else [ADD_QEMU_ACCOUNT]


def install_hint(*needs: str) -> str:
    """Return one line that says how to meet ``needs``, for an error's resolution."""
    manager = package_manager()
    if manager is None:
        return "install " + " ".join(packages_for(list(needs), APT)) + " (Debian's names)"
    return f"{_INSTALL[manager]} " + " ".join(packages_for(list(needs), manager))


def need_for(program: str) -> str | None:
    """Return the name of the need that lists a program, None if no row of the table does."""
    return next((need for need, row in _ALL.items() if program in row.programs), None)


def main() -> int:
    """Print what this machine lacks; exit code 0 when it lacks nothing."""
    parser = argparse.ArgumentParser(description="host packages that pytest-kvm needs")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--print", action="store_true", help="the commands that install what is missing")
    what.add_argument("--missing", action="store_true", help="the needs that are not met, with their reason")
    arguments = parser.parse_args()
    lacking = missing()
    if arguments.missing:
        lines = [f"{need}: {why(need)}" for need in lacking]
    else:
        sudo = [] if os.geteuid() == 0 else ["sudo"]
        commands = install_commands(lacking) or account_commands()
        lines = [shlex.join([*sudo, *command]) for command in commands]
    for line in lines:
        print(line)
    return 1 if lines else 0


if __name__ == "__main__":
    raise SystemExit(main())
