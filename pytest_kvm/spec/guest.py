"""``GuestSpec``: all that a user can ask of a guest."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from collections.abc import Callable, Mapping, Sequence
from dataclasses import field
from pathlib import Path
from types import NoneType
from typing import Literal, cast

from pytest_kvm.errors import SpecError
from pytest_kvm.settings import KernelPolicy
from pytest_kvm.sizes import parse_kib
from pytest_kvm.spec.cloudinit import CloudInit
from pytest_kvm.spec.disk import Disk
from pytest_kvm.spec.gates import Gates
from pytest_kvm.spec.image import ImageRef
from pytest_kvm.spec.nic import Nic, check_subnets
from pytest_kvm.spec.prepare import HostFile, Script, checked_steps
from pytest_kvm.spec.value import check_choice, check_patterns, check_sequence, put, spec_value

BootMethod = Literal["auto", "direct", "firmware"]
Firmware = Literal["bios", "uefi"]
ConsoleDevice = Literal["serial", "virtio"]
IdentityChoice = Literal["auto", "unique", "shared"]
Reset = Literal["auto", "always", "never"]
XmlHook = Callable[[ET.Element], ET.Element]

_LEAST_MEMORY_KIB = 64 * 1024
_MOST_VCPUS = 255
_MOST_NICS = 14
"""Slots on q35's root bus that are free for cards given as QEMU arguments."""
_HOSTNAME = re.compile(r"(?!-)[a-zA-Z0-9-]{1,63}(?<!-)(\.(?!-)[a-zA-Z0-9-]{1,63}(?<!-))*")
_PACKAGE = re.compile(r"[a-z0-9][a-z0-9+.-]+(:[a-z0-9]+)?(=[A-Za-z0-9.+:~-]+)?")
_TIMEZONE = re.compile(r"[A-Za-z][A-Za-z0-9_+-]*(/[A-Za-z0-9_+-]+){0,2}")
_CPU = re.compile(r"[A-Za-z0-9_.-]+")
_UNIT = re.compile(r"[A-Za-z0-9:_.@\\-]+\.[a-z]+")
_USER = re.compile(r"[a-z_][a-z0-9_-]{0,31}")


@spec_value
class GuestSpec:
    """What a guest is made of.

    The run chooses what is not in a spec: paths of overlays, host ports, MAC addresses that no card names.
    """

    image: str | ImageRef | None = field(default=None, kw_only=False)
    """The image to start from; None: the image that ``--kvm-image`` names."""
    memory: str = "1GiB"
    vcpus: int = 2
    cpu: str | None = None
    """A QEMU CPU model; None: the host's own under KVM, a good one under TCG."""
    disks: Sequence[Disk] = ()
    nics: Sequence[Nic] = ()
    root_size: str | None = None
    """Size that the root disk grows to; None keeps the image's size."""
    packages: Sequence[str] = ()
    """Distribution packages: built into a derived image where the image was
    built from packages, else installed by cloud-init (which needs ``internet``)."""
    units: Sequence[str] = ()
    """systemd units that must be active before the guest counts as ready."""
    prepare: Sequence[str | Sequence[str] | Script | HostFile] = ()
    """Steps done once, in order and as root, when the guest is ready and before it is
    saved as a template: commands (a string is run by the shell, a list without one),
    scripts, host files."""
    identity: IdentityChoice = "auto"
    """Names and keys of a clone. ``unique``: it gets a host name (if the spec names none), a
    ``machine-id`` and an SSH host key of its own; ``shared``: it keeps the template's;
    ``auto``: as ``unique`` if it has a card on a network that other guests can join, else only
    the host name is its own."""
    reset: Reset = "auto"
    """What becomes of a test's changes: ``auto`` undoes them before the next test
    if the guest was used, or reached by frames of another guest that was; ``always``
    undoes them in any case; ``never`` keeps them for the tests that follow."""
    kernel_errors: KernelPolicy | None = None
    """What becomes of a test that uses the guest if its kernel panics, oopses, stalls or runs out of
    memory; None takes ``--kvm-kernel-errors``."""
    kernel_warnings: KernelPolicy | None = None
    """The same for what the kernel itself calls a warning; None takes ``--kvm-kernel-warnings``."""
    allow_kernel_errors: Sequence[str] = ()
    """Regular expressions: errors and warnings in whose text one of them is found are expected."""
    gates: Gates = field(default_factory=Gates)
    """What the guest must not show after a test that has it."""
    hostname: str | None = None
    """Host name; None: made of the guest's name."""
    timezone: str | None = None
    cloud_init: CloudInit = field(default_factory=CloudInit)
    login: str = "root"
    """The user that the plugin logs in as over SSH, and that runs commands."""
    internet: bool = False
    """Whether the guest may open connections to the outside."""
    boot: BootMethod = "auto"
    """``direct``: QEMU loads a kernel from the host; ``firmware``: the firmware boots the
    disk; ``auto``: ``direct`` if the image or the spec brings a kernel."""
    firmware: Firmware = "bios"
    """With ``uefi`` the boot loader on the disk boots; the kernel beside an image is no EFI program."""
    kernel: str | Path | None = None
    """A kernel on the host to boot instead of the image's own."""
    initrd: str | Path | None = None
    """An initrd on the host; with ``kernel`` alone the guest boots without one."""
    cmdline: str | None = None
    """Replaces the kernel command line; it must name the root file system and the console."""
    cmdline_extra: str = ""
    """Words that are added to the end of the kernel command line."""
    console: ConsoleDevice = "serial"
    """The kernel's console: ``serial`` shows output from the firmware's first byte on,
    ``virtio`` is faster and shows output once its driver is loaded."""
    xml: XmlHook | None = None
    """A function that gets the domain XML tree before it is used, and returns the tree to use."""
    boot_timeout: float | None = None
    """Seconds from power on to ready; None takes the run's deadlines."""

    def __post_init__(self) -> None:
        """Check each field, and fields that depend on each other."""
        if not isinstance(self.image, (str, ImageRef, NoneType)):
            raise SpecError(f"GuestSpec.image: {self.image!r} is neither a name nor an ImageRef")
        _ = self.image_ref  # making the reference checks the name
        self._freeze_lists()
        self._check_hardware()
        self._check_software()
        self._check_life()
        self._check_boot()

    @property
    def memory_kib(self) -> int:
        """Memory in KiB."""
        return parse_kib(self.memory, field="GuestSpec.memory")

    @property
    def image_ref(self) -> ImageRef | None:
        """The image as an :class:`~pytest_kvm.ImageRef`; None if the spec names no image."""
        return ImageRef.parse(self.image) if isinstance(self.image, str) else self.image

    def _freeze_lists(self) -> None:
        put(self, "disks", check_sequence(self.disks, field="GuestSpec.disks", one=Disk))
        put(self, "nics", check_sequence(self.nics, field="GuestSpec.nics", one=Nic))
        put(self, "packages", check_sequence(self.packages, field="GuestSpec.packages"))
        put(self, "units", check_sequence(self.units, field="GuestSpec.units"))
        put(self, "prepare", checked_steps(self.prepare, field="GuestSpec.prepare"))

    def _check_hardware(self) -> None:
        if self.memory_kib < _LEAST_MEMORY_KIB:
            raise SpecError(
                f"GuestSpec.memory: {self.memory!r} is too little", resolution="a kernel wants 64MiB or more"
            )
        if (
            not isinstance(self.vcpus, int)
            or isinstance(self.vcpus, bool)
            or not 1 <= self.vcpus <= _MOST_VCPUS
        ):
            raise SpecError(f"GuestSpec.vcpus: {self.vcpus!r} is not a number from 1 to {_MOST_VCPUS}")
        _check_text(self.cpu, _CPU, field="GuestSpec.cpu", what="a CPU model's name")
        if self.root_size is not None:
            parse_kib(self.root_size, field="GuestSpec.root_size")
        if len(self.nics) > _MOST_NICS:
            raise SpecError(f"GuestSpec.nics: {len(self.nics)} cards, at most {_MOST_NICS} fit")
        _check_unique([disk.serial for disk in self.disks], field="GuestSpec.disks", what="serial")
        _check_unique([nic.mac for nic in self.nics], field="GuestSpec.nics", what="MAC address")
        check_subnets(self.nics, field="GuestSpec.nics")

    def _check_software(self) -> None:
        _check_text(self.hostname, _HOSTNAME, field="GuestSpec.hostname", what="a host name (RFC 1123)")
        _check_text(
            self.timezone, _TIMEZONE, field="GuestSpec.timezone", what='a time zone such as "Europe/Berlin"'
        )
        _check_text(self.login, _USER, field="GuestSpec.login", what="a user name")
        for package in self.packages:
            _check_text(package, _PACKAGE, field="GuestSpec.packages", what="a package's name")
        for unit in self.units:
            _check_text(
                unit, _UNIT, field="GuestSpec.units", what='a unit with its suffix, such as "nginx.service"'
            )
        if not isinstance(self.cloud_init, CloudInit):
            raise SpecError(f"GuestSpec.cloud_init: {self.cloud_init!r} is not a CloudInit")
        on_segments = [f"kvm-nic{number}" for number, nic in enumerate(self.nics, start=1) if nic.segment]
        named = [name for name in on_segments if _mentions(self.cloud_init.network_config, name)]
        if named:
            raise SpecError(
                f"CloudInit.network_config: {named[0]} is on a segment, where clones of the guest are set up "
                "without cloud-init",
                resolution="configure the card in a fixture, with guest.run()",
            )

    def _check_life(self) -> None:
        check_choice(self.identity, IdentityChoice, field="GuestSpec.identity")
        check_choice(self.reset, Reset, field="GuestSpec.reset")
        for name in ("kernel_errors", "kernel_warnings"):
            if getattr(self, name) is not None:
                check_choice(getattr(self, name), KernelPolicy, field=f"GuestSpec.{name}")
        allowed = check_patterns(self.allow_kernel_errors, field="GuestSpec.allow_kernel_errors")
        put(self, "allow_kernel_errors", allowed)
        if self.boot_timeout is not None and not self.boot_timeout > 0:
            raise SpecError(
                f"GuestSpec.boot_timeout: {self.boot_timeout!r} is not a positive number of seconds"
            )
        powerless = {user.name for user in self.cloud_init.users if not user.sudo}
        for needed, reason in (
            (self.prepare, "prepare: steps run as root"),
            (self.gates.is_any_on, "gates: the guest is asked as root"),
        ):
            if needed and self.login in powerless:
                raise SpecError(
                    f"GuestSpec.{reason}, and the login {self.login!r} has sudo=False",
                    resolution="log in as root, or as a user with sudo=True",
                )

    def _check_boot(self) -> None:
        check_choice(self.boot, BootMethod, field="GuestSpec.boot")
        check_choice(self.firmware, Firmware, field="GuestSpec.firmware")
        check_choice(self.console, ConsoleDevice, field="GuestSpec.console")
        for name in ("kernel", "initrd"):
            value = getattr(self, name)
            if value is not None:
                put(self, name, Path(value))
        if self.initrd is not None and self.kernel is None:
            raise SpecError(
                "GuestSpec.initrd: an initrd without a kernel", resolution="name the kernel it belongs to"
            )
        self._check_loader()
        for name in ("cmdline", "cmdline_extra"):
            value = getattr(self, name)
            if value is not None and (
                not isinstance(value, str) or any(ord(each) < ord(" ") for each in value)
            ):
                raise SpecError(f"GuestSpec.{name}: {value!r} is not one line of text")

    def _check_loader(self) -> None:
        """Refuse fields of a direct boot if the boot loader on the disk boots."""
        if self.firmware == "uefi" and self.boot == "direct":
            raise SpecError(
                'GuestSpec.boot: "direct" with firmware="uefi"',
                resolution='UEFI guests boot what their disk holds: leave boot out, or use firmware="bios"',
            )
        if self.boot != "firmware" and self.firmware != "uefi":
            return
        direct = [name for name in ("kernel", "initrd", "cmdline", "cmdline_extra") if getattr(self, name)]
        if direct:
            chosen = 'boot="firmware"' if self.boot == "firmware" else 'firmware="uefi"'
            raise SpecError(
                f"GuestSpec.{direct[0]}: means nothing with {chosen}",
                resolution="the disk's boot loader chooses: leave it out, or boot directly under BIOS",
            )


def _mentions(config: object, word: str) -> bool:
    """Say whether a word is a key or a text in a tree of mappings and lists."""
    if isinstance(config, Mapping):
        pairs = cast("Mapping[object, object]", config).items()
        return any(_mentions(each, word) for pair in pairs for each in pair)
    if isinstance(config, (list, tuple)):
        return any(_mentions(each, word) for each in cast("Sequence[object]", config))
    return config == word


def _check_text(value: object, pattern: re.Pattern[str], *, field: str, what: str) -> None:
    if value is not None and not (isinstance(value, str) and pattern.fullmatch(value)):
        raise SpecError(f"{field}: {value!r} is not {what}")


def _check_unique(values: Sequence[str | None], *, field: str, what: str) -> None:
    given = [value for value in values if value is not None]
    twice = sorted({value for value in given if given.count(value) > 1})
    if twice:
        raise SpecError(f"{field}: two have the {what} {twice[0]!r}", resolution=f"give each its own {what}")
