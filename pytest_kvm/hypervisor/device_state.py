"""Save a domain's device state to a file and load it again, without the RAM.

QEMU's migration with ``x-ignore-shared`` skips memory that is a shared file
(https://www.qemu.org/docs/master/devel/migration/features.html); the rest is
less than a MiB. QEMU gets the file as an open descriptor, because libvirt's
seccomp sandbox forbids ``exec:``, and QEMU has ``file:`` only since 8.2.
"""

from __future__ import annotations

import json
from functools import partial
from typing import TYPE_CHECKING, Any, BinaryIO, cast

import libvirt_qemu

from pytest_kvm.errors import DomainFailed
from pytest_kvm.hypervisor.libvirt_errors import translated
from pytest_kvm.hypervisor.monitor import qmp, result_of
from pytest_kvm.waiting import NotYet, wait_until

if TYPE_CHECKING:
    from collections.abc import Callable

    import libvirt

    _MonitorCommand = Callable[[libvirt.virDomain, str, list[int], int], tuple[str, object]]

_FILE = "kvm-state"
"""QEMU's name for the descriptor."""
_WITHIN = 120.0
_LOOK_EVERY = 0.003


def save(domain: libvirt.virDomain, target: BinaryIO) -> None:
    """Write the device state of a paused domain to an open file.

    Raises:
        DomainFailed: A device's state cannot be saved, or the disk is full.
    """
    _skip_shared_ram(domain, skip=True)
    _hand_over(domain, target)
    qmp(domain, "migrate", arguments={"uri": f"fd:{_FILE}"})
    _wait_for_job(domain, doing="saving the state")


def load(domain: libvirt.virDomain, source: BinaryIO) -> None:
    """Load device state from an open file into a domain that was started with ``-incoming defer``.

    Raises:
        DomainFailed: The state does not fit the domain, or is damaged.
    """
    _skip_shared_ram(domain, skip=True)
    _hand_over(domain, source)
    qmp(domain, "migrate-incoming", arguments={"uri": f"fd:{_FILE}"})
    _wait_for_job(domain, doing="loading the state")
    # A savepoint of this clone has to contain its memory, too.
    _skip_shared_ram(domain, skip=False)


def _skip_shared_ram(domain: libvirt.virDomain, *, skip: bool) -> None:
    capability = {"capability": "x-ignore-shared", "state": skip}
    qmp(domain, "migrate-set-capabilities", arguments={"capabilities": [capability]})


def _hand_over(domain: libvirt.virDomain, file: BinaryIO) -> None:
    request = json.dumps({"execute": "getfd", "arguments": {"fdname": _FILE}})
    name: str = domain.name()
    with translated(f"hand a file to QEMU of {name}", error=DomainFailed):
        reply = _with_files(domain, request, [file.fileno()])
    result_of(reply, command="getfd", name=name)


def _with_files(domain: libvirt.virDomain, request: str, files: list[int]) -> str:
    # libvirt_qemu.py leaves the type of files that QEMU may send back open.
    call = cast("_MonitorCommand", libvirt_qemu.qemuMonitorCommandWithFiles)  # pyright: ignore[reportUnknownMemberType]
    return call(domain, request, files, 0)[0]


def _wait_for_job(domain: libvirt.virDomain, *, doing: str) -> None:
    wait_until(
        partial(_check_finished, domain, doing),
        describe=f"{doing} of {domain.name()}",
        timeout=_WITHIN,
        every=_LOOK_EVERY,
        error=DomainFailed,
    )


def _check_finished(domain: libvirt.virDomain, doing: str) -> None:
    seen: dict[str, Any] = qmp(domain, "query-migrate", arguments=None)
    status = seen.get("status", "none")
    if status in ("failed", "cancelled"):
        raise DomainFailed(
            f"{doing} of {domain.name()} failed", details=str(seen.get("error-desc", "QEMU gives no reason"))
        )
    if status != "completed":
        raise NotYet(status)
