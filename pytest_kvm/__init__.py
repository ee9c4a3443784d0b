"""The public names of pytest-kvm: tests on real virtual machines, with guests as pytest fixtures.

``import pytest_kvm as kvm``, then declare guests with :func:`guest` and
:class:`GuestSpec`. Names are loaded when they are first used, because pytest
imports this package in every project that has the plugin installed, also in
projects without guests.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pytest_kvm.errors import (
        AgentError,
        BootFailed,
        ChecksumMismatch,
        CleanupFailed,
        CloudInitFailed,
        CloudInitTimeout,
        CommandFailed,
        CommandTimeout,
        ConnectionFailed,
        ConvertFailed,
        DomainFailed,
        DownloadFailed,
        EmergencyMode,
        GuestError,
        GuestGone,
        GuestUnhealthy,
        HostCommandFailed,
        HostError,
        HypervisorError,
        ImageError,
        KernelErrorWarning,
        KernelPanicked,
        KvmError,
        KvmUnavailable,
        LoginRefused,
        MissingDependency,
        NetworkFailed,
        NicWithoutDriver,
        NoBootableDevice,
        NoCapacity,
        PrepareFailed,
        QemuDied,
        RemoteDiskFull,
        RemoteFileDenied,
        RemoteFileError,
        RemoteFileMissing,
        SavepointGone,
        SavepointRefused,
        SnapshotFailed,
        SpecError,
        SshNeverAnswered,
        SshUnavailable,
        StateDamaged,
        SwitchFailed,
        UnitFailed,
        UnitNotActive,
        UnknownImage,
        UnknownTemplate,
        WaitTimeout,
    )
    from pytest_kvm.handles.capture import Capture
    from pytest_kvm.handles.fault import Fault
    from pytest_kvm.handles.guest import Guest
    from pytest_kvm.handles.lab import Lab, lab
    from pytest_kvm.handles.polling import polling
    from pytest_kvm.handles.savepoint import Savepoint
    from pytest_kvm.handles.segment import GuestNic, Segment
    from pytest_kvm.plugin.declare import guest, network
    from pytest_kvm.plugin.fixtures import Guests, Networks
    from pytest_kvm.plugin.lab_fixture import lab_template
    from pytest_kvm.plugin.newhooks import GuestDeclaration
    from pytest_kvm.results import CommandResult
    from pytest_kvm.spec.cloudinit import CloudInit, File, User
    from pytest_kvm.spec.disk import Disk
    from pytest_kvm.spec.gates import Gates
    from pytest_kvm.spec.guest import GuestSpec
    from pytest_kvm.spec.image import ImageRef
    from pytest_kvm.spec.network import NetworkSpec
    from pytest_kvm.spec.nic import Nic
    from pytest_kvm.spec.prepare import HostFile, Script
    from pytest_kvm.ssh.process import Process
    from pytest_kvm.switch.packets import Packet

_HOMES = {
    "errors": (
        *("AgentError", "BootFailed", "ChecksumMismatch", "CleanupFailed", "CloudInitFailed"),
        *("CloudInitTimeout", "CommandFailed", "CommandTimeout", "ConnectionFailed", "ConvertFailed"),
        *("DomainFailed", "DownloadFailed", "EmergencyMode", "GuestError", "GuestGone"),
        *("GuestUnhealthy", "HostCommandFailed", "HostError", "HypervisorError", "ImageError"),
        *("KernelErrorWarning", "KernelPanicked", "KvmError", "KvmUnavailable", "LoginRefused"),
        *("MissingDependency", "NetworkFailed", "NicWithoutDriver"),
        *("NoBootableDevice", "NoCapacity", "PrepareFailed", "QemuDied", "RemoteDiskFull"),
        "RemoteFileDenied",
        *("RemoteFileError", "RemoteFileMissing", "SavepointGone", "SavepointRefused", "SnapshotFailed"),
        *("SpecError", "SshNeverAnswered", "SshUnavailable", "StateDamaged", "SwitchFailed", "UnitFailed"),
        *("UnitNotActive", "UnknownImage", "UnknownTemplate", "WaitTimeout"),
    ),
    "handles.capture": ("Capture",),
    "handles.fault": ("Fault",),
    "handles.guest": ("Guest",),
    "handles.lab": ("Lab", "lab"),
    "handles.polling": ("polling",),
    "handles.savepoint": ("Savepoint",),
    "handles.segment": ("GuestNic", "Segment"),
    "ssh.process": ("Process",),
    "results": ("CommandResult",),
    "plugin.declare": ("guest", "network"),
    "plugin.fixtures": ("Guests", "Networks"),
    "plugin.lab_fixture": ("lab_template",),
    "plugin.newhooks": ("GuestDeclaration",),
    "spec.cloudinit": ("CloudInit", "File", "User"),
    "spec.disk": ("Disk",),
    "spec.gates": ("Gates",),
    "spec.guest": ("GuestSpec",),
    "spec.image": ("ImageRef",),
    "spec.network": ("NetworkSpec",),
    "spec.nic": ("Nic",),
    "spec.prepare": ("HostFile", "Script"),
    "switch.packets": ("Packet",),
}
_HOME_OF = {name: module for module, names in _HOMES.items() for name in names}

__all__ = [
    "AgentError",
    "BootFailed",
    "Capture",
    "ChecksumMismatch",
    "CleanupFailed",
    "CloudInit",
    "CloudInitFailed",
    "CloudInitTimeout",
    "CommandFailed",
    "CommandResult",
    "CommandTimeout",
    "ConnectionFailed",
    "ConvertFailed",
    "Disk",
    "DomainFailed",
    "DownloadFailed",
    "EmergencyMode",
    "Fault",
    "File",
    "Gates",
    "Guest",
    "GuestDeclaration",
    "GuestError",
    "GuestGone",
    "GuestNic",
    "GuestSpec",
    "GuestUnhealthy",
    "Guests",
    "HostCommandFailed",
    "HostError",
    "HostFile",
    "HypervisorError",
    "ImageError",
    "ImageRef",
    "KernelErrorWarning",
    "KernelPanicked",
    "KvmError",
    "KvmUnavailable",
    "Lab",
    "LoginRefused",
    "MissingDependency",
    "NetworkFailed",
    "NetworkSpec",
    "Networks",
    "Nic",
    "NicWithoutDriver",
    "NoBootableDevice",
    "NoCapacity",
    "Packet",
    "PrepareFailed",
    "Process",
    "QemuDied",
    "RemoteDiskFull",
    "RemoteFileDenied",
    "RemoteFileError",
    "RemoteFileMissing",
    "Savepoint",
    "SavepointGone",
    "SavepointRefused",
    "Script",
    "Segment",
    "SnapshotFailed",
    "SpecError",
    "SshNeverAnswered",
    "SshUnavailable",
    "StateDamaged",
    "SwitchFailed",
    "UnitFailed",
    "UnitNotActive",
    "UnknownImage",
    "UnknownTemplate",
    "User",
    "WaitTimeout",
    "guest",
    "lab",
    "lab_template",
    "network",
    "polling",
]


def __getattr__(name: str) -> object:
    """Load a public name from its module (PEP 562)."""
    home = _HOME_OF.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value: object = getattr(importlib.import_module(f"{__name__}.{home}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """List the public names, loaded or not."""
    return __all__
