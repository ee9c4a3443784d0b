"""Checks of what this machine has for running guests, each with a remedy for what is missing.

``pytest-kvm doctor`` prints the results. No check loads libvirt.
"""

from __future__ import annotations

import getpass
import importlib.util
import os
import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pytest_kvm.host import install_hints as packages
from pytest_kvm.host.accelerator import kvm_usable
from pytest_kvm.host.oldest_versions import REMEDY, Program, version_in, why_too_old
from pytest_kvm.host.resources import cpus_available, disk_free_mib, memory_available_mib
from pytest_kvm.host.usable_folder import why_not_writable

Severity = Literal["ok", "warning", "error"]

_MEMORY_FOR_A_GUEST_MIB = 1024
_SPACE_FOR_AN_IMAGE_MIB = 4096
_SPACE_FOR_A_RUN_MIB = 2048
_SUBORDINATE_IDS = 65536
_LONGEST_QUESTION = 20.0


@dataclass(frozen=True, kw_only=True)
class Fact:
    """Result of one check of this machine."""

    name: str
    severity: Severity
    """``error``: no guest starts. ``warning``: something is slower or missing."""
    seen: str
    remedy: str = ""
    """What to do; empty when there is nothing to do."""


def all_facts(*, cache_dir: Path, run_dir: Path) -> Iterator[Fact]:
    """Run every check and yield each result at once; all of them take a second or two."""
    yield accelerator_fact(cache_dir)
    yield nested_fact()
    yield program_fact("QEMU", "qemu-system-x86_64", need="qemu-system")
    yield program_fact("qemu-img", "qemu-img", need="qemu-img")
    for need in ("mmdebstrap", "zstd", "base-tools"):
        yield _need_fact(need, severity="warning")
    yield libvirt_library_fact()
    yield libvirt_module_fact()
    yield libvirt_driver_fact()
    yield qemu_account_fact()
    yield rootless_build_fact()
    yield firmware_fact()
    yield filters_fact()
    yield memory_fact()
    yield cpu_fact()
    yield space_fact("space for images", cache_dir, needed=_SPACE_FOR_AN_IMAGE_MIB, flag="--kvm-cache-dir")
    yield space_fact("space for runs", run_dir, needed=_SPACE_FOR_A_RUN_MIB, flag="--kvm-run-dir")


def accelerator_fact(cache_dir: Path) -> Fact:
    """Look whether KVM runs guests."""
    probe = kvm_usable(cache_dir)
    if probe.usable:
        return Fact(name="KVM", severity="ok", seen=probe.reason)
    seen = f"{probe.reason}; guests run under TCG, five to ten times slower"
    return Fact(name="KVM", severity="warning", seen=seen, remedy=probe.remedy)


def nested_fact(modules: Path = Path("/sys/module")) -> Fact:
    """Look whether guests can run guests."""
    for module in ("kvm_intel", "kvm_amd"):
        switch = modules / module / "parameters/nested"
        if switch.exists():
            on = switch.read_text().strip() in {"1", "Y"}
            return Fact(name="nested guests", severity="ok", seen=f"{module}: {'on' if on else 'off'}")
    return Fact(name="nested guests", severity="ok", seen="off: no hardware virtualization module is loaded")


def program_fact(program: Program, name: str, *, need: str) -> Fact:
    """Look for a program and its version.

    Args:
        program: Whose version has to be new enough.
        name: The program's file on PATH.
        need: Its row in the table of needs.
    """
    hint = packages.install_hint(need)
    path = shutil.which(name)
    if path is None:
        return Fact(name=program, severity="error", seen="not installed", remedy=hint)
    said = _output_of(path, "--version")
    if said is None:
        return Fact(name=program, severity="error", seen=f"{path} does not run", remedy=hint)
    version = version_in(said)
    if why := why_too_old(program, version):
        return Fact(name=program, severity="error", seen=f"{path} is {why}", remedy=REMEDY)
    return Fact(name=program, severity="ok", seen=f"{version} ({path})")


def libvirt_library_fact() -> Fact:
    """Look for libvirt's client library: its file name tells the version."""
    found = [
        (int(match[1]) // 1000, int(match[1]) % 1000, int(match[2]))
        for folder in ("usr/lib", "usr/lib64", "usr/lib/*-linux-gnu", "usr/local/lib")
        for file in Path("/").glob(f"{folder}/libvirt.so.0.*")
        if (match := re.fullmatch(r"libvirt\.so\.0\.(\d+)\.(\d+)", file.name))
    ]
    name = "libvirt library"
    if not found:
        hint = packages.install_hint("libvirt-qemu-driver")
        return Fact(name=name, severity="error", seen="not installed", remedy=hint)
    version = ".".join(map(str, max(found)))
    if why := why_too_old("libvirt", version):
        return Fact(name=name, severity="error", seen=why, remedy=REMEDY)
    return Fact(name=name, severity="ok", seen=version)


def libvirt_module_fact() -> Fact:
    """Look for libvirt's Python module in this environment."""
    if importlib.util.find_spec("libvirt") is not None:
        return Fact(name="libvirt module", severity="ok", seen="libvirt-python is installed")
    remedy = f"{packages.install_hint('libvirt-build')}; then pip install libvirt-python"
    return Fact(
        name="libvirt module", severity="error", seen="libvirt-python is not installed", remedy=remedy
    )


def libvirt_driver_fact() -> Fact:
    """Look for libvirt's QEMU driver."""
    return _need_fact("libvirt-qemu-driver", severity="error")


def qemu_account_fact() -> Fact:
    """Look for the user account that libvirt needs when it runs as root."""
    commands = packages.account_commands()
    if not commands:
        return Fact(name="account for QEMU", severity="ok", seen="there, or not needed")
    remedy = shlex.join(commands[0])
    seen = "there is no user libvirt-qemu; as root libvirt will not start without"
    return Fact(name="account for QEMU", severity="error", seen=seen, remedy=remedy)


def rootless_build_fact(
    subuid: Path = Path("/etc/subuid"), namespaces: Path = Path("/proc/sys/user/max_user_namespaces")
) -> Fact:
    """Look whether this user can build images: root can, others need subordinate ids."""
    name = "image builds"
    if os.geteuid() == 0:
        return Fact(name=name, severity="ok", seen="as root")
    if not namespaces.exists() or int(namespaces.read_text()) == 0:
        remedy = "sysctl user.max_user_namespaces=10000"
        return Fact(name=name, severity="warning", seen="user namespaces are switched off", remedy=remedy)
    if _output_of("unshare", "--user", "true") is None:
        remedy = "sysctl kernel.apparmor_restrict_unprivileged_userns=0 kernel.unprivileged_userns_clone=1"
        return Fact(name=name, severity="warning", seen="user namespaces are not allowed", remedy=remedy)
    if not _has_subordinate_ids(subuid):
        user = _user()
        remedy = f"usermod --add-subuids 100000-165535 --add-subgids 100000-165535 {user}"
        return Fact(name=name, severity="warning", seen=f"{user} has no subordinate ids", remedy=remedy)
    return _need_fact("subordinate-ids", severity="warning", name=name)


def firmware_fact() -> Fact:
    """Look for UEFI firmware."""
    return _need_fact("uefi-firmware", severity="warning")


def filters_fact() -> Fact:
    """Look for the library that applies filter expressions."""
    return _need_fact("libpcap", severity="warning")


def memory_fact() -> Fact:
    """Look whether there is memory for a guest."""
    free = memory_available_mib()
    if free < _MEMORY_FOR_A_GUEST_MIB:
        remedy = "end other programs, raise the container's limit, or use smaller guests"
        return Fact(name="memory", severity="warning", seen=f"{free} MiB are free", remedy=remedy)
    return Fact(name="memory", severity="ok", seen=f"{free} MiB are free")


def cpu_fact() -> Fact:
    """Count processors."""
    return Fact(name="processors", severity="ok", seen=f"{cpus_available()}")


def space_fact(name: str, folder: Path, *, needed: int, flag: str) -> Fact:
    """Look whether ``folder``, which an option names, can be written to and has ``needed`` MiB left."""
    if why := why_not_writable(folder):
        remedy = f"choose another with {flag}"
        return Fact(
            name=name, severity="warning", seen=f"{folder} cannot be written to: {why}", remedy=remedy
        )
    free = disk_free_mib(folder)
    seen = f"{free} MiB are free in {folder}"
    if free < needed:
        remedy = f"make room: {needed} MiB are a comfortable minimum"
        return Fact(name=name, severity="warning", seen=seen, remedy=remedy)
    return Fact(name=name, severity="ok", seen=seen)


def _need_fact(need: str, *, severity: Severity, name: str = "") -> Fact:
    if packages.is_met(need):
        return Fact(name=name or need, severity="ok", seen="installed")
    seen = f"not installed; {packages.NEEDS[need].why}"
    return Fact(name=name or need, severity=severity, seen=seen, remedy=packages.install_hint(need))


def _output_of(*argv: str) -> str | None:
    """Return what a program prints, None if it fails."""
    try:
        ran = subprocess.run(argv, capture_output=True, text=True, timeout=_LONGEST_QUESTION, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return ran.stdout


def _has_subordinate_ids(subuid: Path) -> bool:
    owners = {_user(), str(os.getuid())}
    try:
        lines = subuid.read_text().splitlines()
    except OSError:
        return False
    rows = [line.split(":") for line in lines if line.count(":") == 2]
    return any(row[0] in owners and int(row[2]) >= _SUBORDINATE_IDS for row in rows if row[2].isdecimal())


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's uid without an entry in /etc/passwd
        return str(os.getuid())
