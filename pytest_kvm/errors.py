"""What can go wrong, and whose fault it is.

::

    KvmError
    ├── SpecError                 a mistake in what the user wrote; reported at collection
    ├── HostError                 this machine cannot do it
    │   ├── MissingDependency     a host program or library is absent or too old
    │   ├── KvmUnavailable        KVM was asked for and does not work
    │   ├── NoCapacity            no room: disk, memory, a lock that is never released
    │   ├── HostCommandFailed     a host program failed
    │   └── SwitchFailed          the switch of the run's segments has ended or refused
    ├── ImageError
    │   ├── UnknownImage
    │   ├── ChecksumMismatch
    │   ├── DownloadFailed
    │   └── ConvertFailed
    ├── UnknownTemplate           the boot cache has no template of that key
    ├── HypervisorError           libvirt refused or failed
    │   ├── ConnectionFailed
    │   ├── DomainFailed
    │   │   └── StateDamaged      QEMU cannot take in the state that a template holds
    │   ├── SnapshotFailed
    │   │   ├── SavepointGone   what it was taken on is not there any more
    │   │   └── SavepointRefused  something is in the way; nothing has changed
    │   └── NetworkFailed
    └── GuestError                the guest did not do what was expected
        ├── BootFailed            one rung of the readiness ladder; see its subclasses
        │   ├── QemuDied
        │   ├── NoBootableDevice
        │   ├── KernelPanicked
        │   ├── EmergencyMode
        │   ├── SshNeverAnswered
        │   ├── LoginRefused
        │   ├── CloudInitFailed
        │   ├── CloudInitTimeout
        │   ├── UnitNotActive
        │   ├── NicWithoutDriver
        │   └── PrepareFailed
        ├── GuestUnhealthy        its kernel reported an error while a test ran
        ├── GuestGone             the domain ended while something waited for it
        ├── SshUnavailable        the connection to a guest that was ready is lost
        ├── WaitTimeout           a wait ran out; carries the last observation
        ├── UnitFailed            a unit that was waited for has failed
        ├── AgentError            the guest agent refused or did not answer
        ├── CommandFailed         ``check=True`` and the command exited non-zero
        ├── CommandTimeout        the command ran out of time; carries partial output
        └── RemoteFileError       a file of the guest could not be read or written
            ├── RemoteFileMissing
            ├── RemoteFileDenied
            └── RemoteDiskFull

    CleanupFailed                 an ExceptionGroup of what went wrong during teardown
    KernelErrorWarning            a UserWarning: a guest's kernel reported an error

A failing *test* is none of these except ``CommandFailed``, ``CommandTimeout``,
``WaitTimeout`` and ``UnitFailed`` raised inside the test's own call, and ``GuestUnhealthy``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pytest_kvm.plaintext import plain

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from pytest_kvm.results import CommandResult


class KvmError(Exception):
    """Root of everything the plugin raises on purpose.

    Its text is plain: much of it comes from guests (``plaintext.py``).

    Args:
        brief: One line: what was wrong and where.
        details: Facts that help to understand it (output, console tail).
        resolution: What the reader can do about it.
    """

    def __init__(self, brief: str, *, details: str = "", resolution: str = "") -> None:
        self.brief = plain(brief)
        self.details = plain(details)
        self.resolution = plain(resolution)
        self._facts: list[str] = []
        self.kept: Path | None = None
        """Folder of what a machine could tell that did not become ready; removed when the run ends."""
        super().__init__(self.brief)

    def set_facts(self, facts: Sequence[str]) -> None:
        """Have the first line of the text end with facts found out later, in place of former ones."""
        self._facts = [plain(fact) for fact in facts]

    def __str__(self) -> str:
        """Return brief, details and resolution as a terminal shows them."""
        parts = ["; ".join([self.brief, *self._facts])]
        if self.details:
            parts.append(self.details.rstrip("\n"))
        if self.resolution:
            parts.append(f"→ {self.resolution}")
        return "\n".join(parts)


class SpecError(KvmError):
    """A spec, marker or option has a value that is not valid."""


class HostError(KvmError):
    """This machine cannot do what was asked."""


class MissingDependency(HostError):
    """A host program or library is absent or too old."""


class KvmUnavailable(HostError):
    """KVM was asked for and does not work here."""


class NoCapacity(HostError):
    """Disk space or memory is missing, or another process does not release a lock."""


class HostCommandFailed(HostError):
    """A host program exited non-zero, was killed or timed out."""


class SwitchFailed(HostError):
    """The switch process of a run's segments has ended, or refused a command."""


class ImageError(KvmError):
    """An image cannot be found, made or read."""


class UnknownImage(ImageError):
    """No image of that name is in the store and none can be built."""


class ChecksumMismatch(ImageError):
    """An image's bytes do not match its digest."""


class DownloadFailed(ImageError):
    """An image could not be fetched."""


class ConvertFailed(ImageError):
    """qemu-img refused an image."""


class UnknownTemplate(KvmError):
    """The boot cache has no template with that key, or several whose keys begin with it."""


class HypervisorError(KvmError):
    """libvirt refused or failed."""


class ConnectionFailed(HypervisorError):
    """The connection to the hypervisor cannot be opened or was lost."""


class DomainFailed(HypervisorError):
    """A domain could not be created, changed or destroyed."""


class StateDamaged(DomainFailed):
    """QEMU cannot load a template's state, or its files are gone; every other clone fails, too."""


class SnapshotFailed(HypervisorError):
    """A snapshot could not be taken or restored."""


class SavepointGone(SnapshotFailed):
    """The machine that a savepoint was taken on has ended, or the savepoint was dropped."""


class SavepointRefused(SnapshotFailed):
    """A savepoint cannot be taken or restored for the reason in the message; the guest has not changed."""


class NetworkFailed(HypervisorError):
    """A network could not be created or removed, or a guest's card cannot be on one."""


class GuestError(KvmError):
    """The guest did not do what was expected of it."""


class BootFailed(GuestError):
    """The guest did not become ready; each rung of the readiness ladder has a subclass."""


class QemuDied(BootFailed):
    """QEMU ended while the guest was booting."""


class NoBootableDevice(BootFailed):
    """The firmware found nothing to boot."""


class KernelPanicked(BootFailed):
    """The guest's kernel panicked."""


class EmergencyMode(BootFailed):
    """The guest's init gave up and opened an emergency shell."""


class SshNeverAnswered(BootFailed):
    """No SSH banner arrived before the deadline."""


class LoginRefused(BootFailed):
    """sshd answered and refused the key, or showed a foreign host key."""


class CloudInitFailed(BootFailed):
    """cloud-init finished with errors; its own text is in the details."""


class CloudInitTimeout(BootFailed):
    """cloud-init was still running at the deadline."""


class UnitNotActive(BootFailed):
    """A unit that the spec wants active failed, or was not active in time."""


class NicWithoutDriver(BootFailed):
    """The guest's kernel has no driver for a network card of the spec."""


class PrepareFailed(BootFailed):
    """A step of the spec's ``prepare`` failed; the message says which."""


class GuestUnhealthy(GuestError):
    """Something went wrong in a guest that the test did not ask about, such as an oops of its kernel."""


class KernelErrorWarning(UserWarning):
    """A guest's kernel reported an error, and the policy is to warn."""


class GuestGone(GuestError):
    """The domain ended while something waited for it."""


class SshUnavailable(GuestError):
    """The SSH connection to a guest that was ready is lost."""


class WaitTimeout(GuestError):
    """A wait ran out of time."""


class UnitFailed(GuestError):
    """A systemd unit that a test waits for has failed."""


class AgentError(GuestError):
    """The guest agent refused a command or did not answer."""


class _CommandError(GuestError):
    """A command in the guest did not end as the caller asked.

    Args:
        brief: As for :class:`KvmError`.
        result: What the command wrote until then.
        details: Both streams, shortened for a person.
        resolution: As for :class:`KvmError`.
    """

    def __init__(self, brief: str, *, result: CommandResult, details: str = "", resolution: str = "") -> None:
        super().__init__(brief, details=details, resolution=resolution)
        self.result = result


class CommandFailed(_CommandError):
    """A command in the guest exited non-zero with ``check=True``, was never run, or wrote too much."""


class CommandTimeout(_CommandError):
    """A command in the guest ran out of time; ``result`` holds the partial output."""


class RemoteFileError(GuestError):
    """A file of the guest could not be read or written."""


class RemoteFileMissing(RemoteFileError):
    """The guest has no such file or folder."""


class RemoteFileDenied(RemoteFileError):
    """The guest's permissions or a read-only file system forbid it."""


class RemoteDiskFull(RemoteFileError):
    """The guest's disk has no room left."""


class CleanupFailed(ExceptionGroup[Exception]):
    """Everything that went wrong while a guest or a run was removed."""

    def derive(self, excs: Sequence[Exception], /) -> CleanupFailed:  # type: ignore[override]
        """Keep the class when the group is split."""
        return CleanupFailed(self.message, excs)
