"""What a run chose for one domain: the half of its XML that no spec says."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pytest_kvm.spec.disk import Bus, DiskFormat
from pytest_kvm.spec.network import Nic


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
    """One extra network card and the MAC address the run gave it."""

    nic: Nic
    mac: str


@dataclass(frozen=True, kw_only=True)
class DirectBoot:
    """A kernel QEMU loads itself."""

    kernel: Path
    initrd: Path | None
    cmdline: str


@dataclass(frozen=True, kw_only=True)
class RamFile:
    """Guest memory in a file of the host's.

    A template writes through to it (``shared``); its clones map it
    copy-on-write and take the rest of their state from an incoming migration.
    """

    path: Path
    shared: bool


@dataclass(frozen=True, kw_only=True)
class DomainPlan:
    """Everything about a domain that its spec does not say."""

    name: str
    uuid: str
    session: str
    """Id of the run, so that a stranger can tell whose domain this is."""
    owner_pid: int
    owner_started: float
    """Seconds since the epoch; a process id alone may have been given away again."""
    accel: Literal["kvm", "tcg"]
    disks: Sequence[DiskPlan]
    """The root disk first, the seed last."""
    control_mac: str
    nics: Sequence[NicPlan]
    console_log: Path
    console_socket: Path
    direct_boot: DirectBoot | None
    genid: str
    """New for every start from a saved state; a kernel that knows it reseeds its RNG."""
    ram_file: RamFile | None = None
    is_clone: bool = False
    """Whether it goes on where a template was frozen."""
    run_as: tuple[int, int] | None = None
    """User and group id QEMU runs as; None leaves it to the connection."""

    @property
    def firmware_log(self) -> Path:
        """What the serial line says where the console is another."""
        return self.console_log.with_suffix(".firmware.log")

    @property
    def agent_socket(self) -> Path:
        """The guest agent's socket.

        Left to itself libvirt makes the path of folder, id and domain name,
        which soon passes the 107 bytes of ``unix(7)``.
        """
        return self.console_socket.with_name("agent.sock")
