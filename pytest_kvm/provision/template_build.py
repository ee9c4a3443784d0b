"""Making a template: switches its machine on, and freezes it when it is ready: saves it and ends it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Collection, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

from pytest_kvm.boot_cache.template import Building
from pytest_kvm.errors import CommandTimeout, DomainFailed, GuestError, GuestGone
from pytest_kvm.host.ssh_keys import new_key_pair, write_private
from pytest_kvm.images.qemu_img import point_at
from pytest_kvm.machine.machine import Machine
from pytest_kvm.machine.network_services import NetworkService, find_service, release_cards
from pytest_kvm.machine.port_forwards import guest_connections
from pytest_kvm.machine.renewal import Prestarted, prestart
from pytest_kvm.provision.cold_boot import BootFiles, Powered, power_on
from pytest_kvm.provision.run_resources import RunResources
from pytest_kvm.provision.start_request import StartRequest
from pytest_kvm.render.plan import DiskPlan, DomainPlan
from pytest_kvm.spec.disk import DiskFormat
from pytest_kvm.waiting import NotYet, wait_until

TEMPLATE_HOSTNAME = "guest"
"""Host name of a template whose spec names none; its clones get their own (see ``GuestSpec.identity``)."""

TemplateTier = Literal["cow", "snapshot"]

SNAPSHOT = "kvm-template"
RAM = "ram"
STATE = "state"
SEED = "seed.iso"
KEY = "id_ed25519"
CONSOLE = "console.log"
_GOODBYE_WITHIN = 30.0
_SSH_PORT = 22
_PRESTARTED = 2
_SETTLE = "systemctl is-system-running --wait; systemctl reload ssh.service || systemctl reload sshd.service"
_NEW_FILE = os.O_WRONLY | os.O_CREAT | os.O_EXCL


@dataclass(frozen=True, kw_only=True)
class TemplateFacts:
    """What starting a clone has to know of the template, beside the template's files."""

    tier: TemplateTier
    """What holds its memory: a RAM file (``cow``) or a snapshot in its disks (``snapshot``)."""
    control_mac: str
    macs: tuple[str, ...]
    hostname: str
    host_key: str
    """Public half of the SSH host key; the private half is in the guest."""
    disks: tuple[tuple[str, DiskFormat], ...]
    """File name and format of each frozen disk, the root disk first."""
    prestarted: tuple[Prestarted, ...]
    """Renewal scripts that wait in each clone (:func:`~pytest_kvm.machine.renewal.prestart`): one
    for its first resume, one for the second resume of a spare clone, which is paused in between."""
    boot_seconds: float
    """Seconds of its cold boot, from power on to ready."""
    network_service: NetworkService | None
    """What sets the cards on segments up when a clone boots; None: nothing that we know, or it has no such
    card."""
    lab: str = ""
    """Id of the moment at which it was frozen together with the other guests of a lab; empty: it was not."""

    def to_json(self) -> dict[str, Any]:
        """Return the facts as the manifest stores them; those of a lab only where there is one."""
        stored = asdict(self) | {"prestarted": [each._asdict() for each in self.prestarted]}
        if not self.lab:
            del stored["lab"]  # a plugin that knows no labs can start this template, too
        return stored

    @classmethod
    def from_json(cls, stored: dict[str, Any]) -> TemplateFacts:
        """Read what :meth:`to_json` returned."""
        lists: dict[str, Any] = {
            "macs": tuple(stored["macs"]),
            "disks": tuple((name, disk_format) for name, disk_format in stored["disks"]),
            "prestarted": tuple(Prestarted(**each) for each in stored["prestarted"]),
        }
        return cls(**(stored | lists))


def power_on_for_template(
    resources: RunResources,
    request: StartRequest,
    *,
    building: Building,
    tier: TemplateTier,
    stack: ExitStack,
) -> Powered:
    """Switch on a machine that keeps its disks and its memory in the building's folder; see :func:`power_on`.

    Raises:
        DomainFailed: QEMU says already that it cannot save this machine.
    """
    key = new_key_pair()
    key_file = write_private(building.folder / KEY, key.private)
    ram = building.ram if tier == "cow" else None
    files = BootFiles(folder=building.folder, key=key, key_file=key_file, ram=ram)
    powered = power_on(resources, request, stack=stack, files=files)
    _check_freezable(powered.machine, tier=tier)
    return powered


def freeze(
    machine: Machine,
    request: StartRequest,
    *,
    plan: DomainPlan,
    building: Building,
    tier: TemplateTier,
    boot_seconds: float,
    prestarted: Sequence[Prestarted] = (),
) -> TemplateFacts:
    """Save a machine's memory and devices as they are at one moment, and destroy its domain.

    Args:
        machine: A machine that is ready; its disks and its memory are in the building's folder.
        request: The request that it was started for.
        plan: The machine's plan.
        building: Where its state goes.
        tier: How the template holds its memory.
        boot_seconds: Seconds of its cold boot, from power on to ready.
        prestarted: Renewal scripts that wait in the guest already.

    Raises:
        DomainFailed: QEMU cannot save the state of one of its devices.
        SnapshotFailed: A disk cannot hold a snapshot.
    """
    _settle(machine)
    network_service = _hand_over_cards(machine, plan)
    log_out(machine)
    more = [prestart(machine) for _ in range(len(prestarted), _PRESTARTED)]
    prestarted = (*prestarted, *(each for each in more if each is not None))
    machine.domain.suspend()
    save(machine, request, plan=plan, building=building, tier=tier)
    *disks, _seed = plan.disks
    return TemplateFacts(
        tier=tier,
        control_mac=plan.control_mac,
        macs=tuple(planned.mac for planned in plan.all_nics),
        hostname=request.hostname,
        host_key=machine.access.host_key,
        disks=tuple((disk.path.name, disk.format) for disk in disks),
        prestarted=prestarted,
        boot_seconds=boot_seconds,
        network_service=network_service,
    )


def save(
    machine: Machine, request: StartRequest, *, plan: DomainPlan, building: Building, tier: TemplateTier
) -> None:
    """Save a machine that is paused, and destroy its domain.

    Args:
        machine: As in :func:`freeze`.
        request: As there.
        plan: As there.
        building: As there.
        tier: As there.

    Raises:
        DomainFailed: QEMU cannot save the state of one of its devices.
        SnapshotFailed: A disk cannot hold a snapshot.
    """
    if tier == "cow":
        with os.fdopen(os.open(building.folder / STATE, _NEW_FILE, 0o600), "wb") as target:
            machine.domain.save_state(target)
    else:
        machine.domain.save_libvirt_snapshot(SNAPSHOT)
    machine.domain.destroy()
    shutil.copyfile(machine.console.log, building.folder / CONSOLE)
    _make_relocatable(request, plan.disks[0])


def _check_freezable(machine: Machine, *, tier: TemplateTier) -> None:
    """Raise before a long boot if the machine could not be saved after it (QMP ``query-migrate``)."""
    reasons: list[str] = machine.domain.qmp("query-migrate").get("blocked-reasons", [])
    if tier == "cow" and "<memoryBacking>" in machine.domain.xml():
        reasons.append("the xml hook chooses a memory backing of its own")
    if reasons:
        raise DomainFailed(f"{machine.name} cannot be frozen ({tier}): {'; '.join(reasons)}")


def _settle(machine: Machine) -> None:
    """Wait until systemd has finished the boot, because every clone would repeat what is left of it.

    sshd is reloaded, so that it forgets its penalties for a client that asked
    for its banner too often (``PerSourcePenalties``, sshd_config(5)).
    """
    try:
        machine.shell.run(_SETTLE, user="root", timeout=machine.timeouts.agent, check=False)
    except CommandTimeout:
        machine.log.info("the boot has not come to its end; frozen as it is")


def _hand_over_cards(machine: Machine, plan: DomainPlan) -> NetworkService | None:
    """Find out what sets the cards on segments up when the guest boots; until then it leaves them alone."""
    if not plan.segment_nics:
        return None
    try:
        service = find_service(machine)
        if service == "NetworkManager":
            release_cards(machine, [planned.mac for planned in plan.segment_nics])
    except GuestGone:
        raise
    except GuestError as failure:
        machine.log.warning(
            "nothing that sets the cards of %s up at a boot was found: %s", machine.name, failure
        )
        return None
    return service


def log_out(machine: Machine) -> None:
    """Close the SSH connection on both sides: in a clone its other end would be gone."""
    found = guest_connections(machine.domain, _SSH_PORT)
    # Closed by a reset to a savepoint, after which the guest does not know of it; QEMU waits for minutes.
    lost = {file for file, state in found.items() if state != "ESTABLISHED"}
    machine.shell.close()
    wait_until(
        partial(_check_nobody_connected, machine, lost),
        describe=f"sshd of {machine.name} to close the connection",
        timeout=_GOODBYE_WITHIN,
        every=0.02,
        error=DomainFailed,
        clock=machine.domain.clock,
    )


def _check_nobody_connected(machine: Machine, lost: Collection[int]) -> None:
    states = [
        state for file, state in guest_connections(machine.domain, _SSH_PORT).items() if file not in lost
    ]
    if states:
        raise NotYet(f"it is in the state {states[0]}")


def _make_relocatable(request: StartRequest, root: DiskPlan) -> None:
    """Make the root disk name its image by a relative path, so that the cache may be moved elsewhere."""
    image = request.image.disk
    point_at(root.path, backing=Path(os.path.relpath(image, root.path.parent)), backing_format="qcow2")
