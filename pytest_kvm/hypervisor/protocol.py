"""Protocols of a hypervisor and its domains: the calls that other layers may use. Does not load libvirt.

All arguments are strings and plain values: a hypervisor never sees a spec.
Every call may raise :class:`~pytest_kvm.errors.HypervisorError`.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Protocol


class DomainState(enum.Enum):
    """libvirt's ``virDomainState``, reduced to the states that the plugin distinguishes."""

    RUNNING = "running"
    PAUSED = "paused"
    SHUTOFF = "shut off"
    CRASHED = "crashed"


@dataclass(frozen=True, kw_only=True)
class HostFacts:
    """What a connection says about the host of its domains."""

    uri: str
    hypervisor_version: str
    """QEMU's version, "7.2.22"."""
    library_version: str
    """libvirt's version, "9.0.0"."""
    emulator: str
    """Path of the QEMU binary."""
    kvm: bool
    """libvirt lists the ``kvm`` domain type (device and module are there)."""
    uefi: bool
    """A firmware descriptor for UEFI is installed."""


@dataclass(frozen=True, kw_only=True)
class CardFrames:
    """What has passed a guest's card, as seen from the guest."""

    received: int = 0
    """Frames that came to the guest."""
    received_bytes: int = 0
    sent: int = 0
    """Frames that came from the guest."""
    sent_bytes: int = 0

    def __add__(self, other: CardFrames) -> CardFrames:
        """Return what has passed both cards."""
        return CardFrames(
            received=self.received + other.received,
            received_bytes=self.received_bytes + other.received_bytes,
            sent=self.sent + other.sent,
            sent_bytes=self.sent_bytes + other.sent_bytes,
        )

    def __sub__(self, earlier: CardFrames) -> CardFrames:
        """Return what has passed since."""
        return CardFrames(
            received=self.received - earlier.received,
            received_bytes=self.received_bytes - earlier.received_bytes,
            sent=self.sent - earlier.sent,
            sent_bytes=self.sent_bytes - earlier.sent_bytes,
        )


class Domain(Protocol):
    """One running (or just ended) transient domain."""

    @property
    def name(self) -> str:
        """The name, unique on its connection."""
        ...

    @property
    def uuid(self) -> str:
        """The UUID as text."""
        ...

    @property
    def pid(self) -> int | None:
        """QEMU's process id on this host; None where it cannot be known."""
        ...

    def clock(self) -> float:
        """Return seconds that pass only while the guest can run; the guest's deadlines are measured in them.

        The clock is like ``time.monotonic()``, but stands still while the guest
        has something to do and the host has no processor for it.
        """
        ...

    def state(self) -> DomainState:
        """Return the state that the hypervisor reports; ``SHUTOFF`` for a domain that is gone."""
        ...

    @property
    def log(self) -> Path | None:
        """The file with QEMU's command line and messages; None if nobody knows it."""
        ...

    def xml(self) -> str:
        """Return the live domain XML; of a domain that has ended, what it was started from."""
        ...

    def alive(self) -> bool:
        """Say whether the domain still runs, as the last event told; asks nobody, so it is cheap."""
        ...

    def end_reason(self) -> str:
        """Return why the domain ended ("guest shutdown", "QEMU died: …"); empty while it is alive."""
        ...

    def on_end(self, callback: Callable[[str], None]) -> None:
        """Call ``callback`` once with the reason of the domain's end; at once if it has ended already."""
        ...

    def on_reset(self, callback: Callable[[], None]) -> None:
        """Call ``callback`` whenever the machine was reset, by :meth:`reset` or by the guest."""
        ...

    def wait_end(self, timeout: float) -> bool:
        """Block until the domain has ended; return False if it has not after ``timeout`` seconds."""
        ...

    def resume(self) -> None:
        """Let the vCPUs run."""
        ...

    def suspend(self) -> None:
        """Stop the vCPUs."""
        ...

    def reset(self) -> None:
        """Press the reset button."""
        ...

    def shutdown(self) -> None:
        """Press the power button (ACPI)."""
        ...

    def destroy(self) -> None:
        """Kill QEMU, like pulling the power cable; it is gone and reaped when this returns. Idempotent."""
        ...

    def inject_nmi(self) -> None:
        """Send a non-maskable interrupt to the vCPUs."""
        ...

    def send_keys(self, keycodes: list[int], *, hold_ms: int = 50) -> None:
        """Press Linux keycodes together."""
        ...

    def screenshot(self) -> bytes:
        """Return the first screen as PNG or PPM bytes."""
        ...

    def qmp(self, command: str, arguments: Mapping[str, Any] | None = None) -> Any:  # noqa: ANN401 - JSON
        """Run a QMP command through the monitor and return its ``return`` value."""
        ...

    def hmp(self, line: str) -> str:
        """Run a human monitor command and return what it printed."""
        ...

    def card_frames(self, device: str) -> CardFrames:
        """Return what has passed a card, by the name of the host's end of it, such as a tap device."""
        ...

    def save_state(self, target: BinaryIO) -> None:
        """Write the device state of a paused domain, without its RAM file, to an open file.

        QEMU closes the domain's disks for good: the only use left for the
        domain is :meth:`destroy`.
        """
        ...

    def load_state(self, source: BinaryIO) -> None:
        """Load device state from an open file into a domain that waits for it; the domain stays paused."""
        ...

    def dump_memory(self, target: Path) -> None:
        """Write memory and registers to a file, as an ELF core dump; the guest stands still.

        Args:
            target: An empty file of the caller's, which libvirt writes to.
        """
        ...

    def take_snapshot(self, name: str) -> None:
        """Write memory, devices and all writable disks into the disks, under a new name.

        The guest stands still meanwhile and goes on afterwards, unless it was paused.

        Raises:
            SavepointRefused: A writable disk is not qcow2.
            SnapshotFailed: A device's state cannot be saved, the name is taken, or the disk is full.
        """
        ...

    def check_snapshot(self, name: str) -> None:
        """Check that the guest has the devices that it had when a snapshot was taken.

        Raises:
            SavepointRefused: Devices were plugged in or unplugged since.
        """
        ...

    def load_snapshot(self, name: str) -> None:
        """Put memory, devices and all writable disks back, in the same QEMU, and leave the guest paused.

        Each snapshot can be loaded any number of times,
        in any order. Snapshots that were in the disks when the domain was
        started can be loaded, too.

        Raises:
            SavepointRefused: Devices were plugged in or unplugged since; the guest is unchanged.
            SnapshotFailed: There is no such snapshot, or it cannot be read. The
                guest cannot be used any more.
        """
        ...

    def drop_snapshot(self, name: str) -> None:
        """Free the space that a snapshot occupies in the disks; other snapshots stay."""
        ...

    def save_libvirt_snapshot(self, name: str) -> None:
        """Take a snapshot by a call of libvirt's own; :meth:`Hypervisor.create_from_snapshot` starts from it.

        Raises:
            SnapshotFailed: A disk is not qcow2, or the guest boots with UEFI.
        """
        ...

    def agent(self, command: str, arguments: Mapping[str, Any] | None = None, *, timeout: float) -> Any:  # noqa: ANN401 - JSON
        """Run a guest agent command and return its ``return`` value.

        Raises:
            AgentError: The agent did not answer within ``timeout`` seconds, or refused.
        """
        ...


class Hypervisor(Protocol):
    """An open connection to a hypervisor."""

    def facts(self) -> HostFacts:
        """Return what the connection says about its host; only the first call asks."""
        ...

    def create(self, xml: str, *, paused: bool = False) -> Domain:
        """Create and start a transient domain from its XML.

        Raises:
            DomainFailed: The hypervisor refused.
            NetworkFailed: A card cannot be on its network of the host.
        """
        ...

    def create_from_snapshot(self, xml: str, *, snapshot: str, paused: bool = False) -> Domain:
        """Create and start a transient domain from a snapshot that its disks hold.

        Args:
            xml: The domain, with the same devices at the same addresses as when
                the snapshot was taken; name, UUID and paths of disks may differ.
            snapshot: Name that was given to :meth:`Domain.save_libvirt_snapshot` or
                :meth:`Domain.take_snapshot`.
            paused: Leave the domain paused.
        """
        ...

    def create_network(self, xml: str) -> None:
        """Make a transient network.

        Raises:
            NetworkFailed: The hypervisor refused.
        """
        ...

    def remove_network(self, uuid: str) -> None:
        """Remove a network with all that was made for it; do nothing if there is none.

        Raises:
            NetworkFailed: The hypervisor refused.
        """
        ...

    def domains(self) -> list[Domain]:
        """Return every running domain of the connection."""
        ...

    def close(self) -> None:
        """Close the connection; domains that still run are not touched."""
        ...
