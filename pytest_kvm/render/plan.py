"""Plans: what the run chose for one machine's domain XML, in addition to the spec."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pytest_kvm.spec.disk import Bus, DiskFormat
from pytest_kvm.spec.nic import Nic

_FIRST_METRIC = 1024
"""Linux's own for IPv6 routes (``IP6_RT_PRIO_USER`` in ``include/uapi/linux/ipv6_route.h``)."""


@dataclass(frozen=True, kw_only=True)
class DiskPlan:
    """One disk as the run made it."""

    path: Path
    format: DiskFormat
    bus: Bus = "virtio"
    serial: str | None = None
    readonly: bool = False


@dataclass(frozen=True, kw_only=True)
class NicPlan:
    """One network card of the spec, with its MAC address."""

    index: int
    """Index of the card in the spec's ``nics``."""
    nic: Nic
    mac: str


@dataclass(frozen=True, kw_only=True)
class SegmentNicPlan(NicPlan):
    """One network card of the spec that is on a segment."""

    port: Path
    """Socket of the switch that the card connects to, unless it is on a libvirt network."""
    mtu: int
    network: str | None = None
    """libvirt's name of the network that the card is on."""
    tap: str = ""
    """Name of the tap device by which the card is on that network."""
    addresses: Sequence[str] = ()
    """Fixed addresses with their prefix lengths."""
    gateways: Sequence[str] = ()
    """Addresses of the host by which the guest reaches other networks."""

    @property
    def metric(self) -> int:
        """Of the routes by these gateways: the guest's first card has the least.

        A control card that leads out of the guest has a smaller one, and is used before them.
        """
        return _FIRST_METRIC + self.index

    @property
    def is_configured(self) -> bool:
        """Whether the card is set up in the guest; otherwise it is left to the test."""
        return bool(self.addresses) or self.nic.uses_dhcp


@dataclass(frozen=True, kw_only=True)
class DirectBoot:
    """A kernel that QEMU loads itself."""

    kernel: Path
    initrd: Path | None
    cmdline: str


@dataclass(frozen=True, kw_only=True)
class RamFile:
    """Guest memory in a file on the host.

    The template's machine writes to the file (``shared``). Clones map the file copy-on-write.
    """

    path: Path
    shared: bool
    incoming: bool
    """Whether QEMU waits for the rest of the guest's state, which comes from an incoming migration."""


@dataclass(frozen=True, kw_only=True)
class DomainPlan:
    """Everything in a domain that its spec does not determine."""

    name: str
    uuid: str
    session: str
    """Id of the run that the domain belongs to."""
    owner_pid: int
    owner_started: float
    """Start of the process in seconds since the epoch: a later process may get the same process id."""
    accel: Literal["kvm", "tcg"]
    disks: Sequence[DiskPlan]
    """The root disk first, the seed last."""
    control_mac: str
    nics: Sequence[NicPlan]
    """The cards that are on no segment."""
    console_log: Path
    console_socket: Path
    direct_boot: DirectBoot | None
    genid: str
    """Generation id, new for every machine: a kernel that supports it reseeds its RNG when it changes."""
    segment_nics: Sequence[SegmentNicPlan] = ()
    """The cards that are on segments."""
    ram_file: RamFile | None = None
    continues_log: bool = False
    """Whether there is a console log already, which the machine goes on with."""
    run_as: tuple[int, int] | None = None
    """User and group id that QEMU runs as; None: libvirt decides."""

    @property
    def all_nics(self) -> list[NicPlan]:
        """The cards of the spec: first those on no segment, then those on segments."""
        return [*self.nics, *self.segment_nics]

    @property
    def firmware_log(self) -> Path:
        """Log of the serial line, if the console is a virtio console."""
        return self.console_log.with_suffix(".firmware.log")

    @property
    def agent_socket(self) -> Path:
        """The guest agent's socket.

        libvirt's default path consists of folder, id and domain name, which is
        easily longer than the 107 bytes of ``unix(7)``.
        """
        return self.console_socket.with_name("agent.sock")
