"""Chooses what one machine has to itself: UUID, names, addresses, host key, sockets; and its kernel."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import psutil

from pytest_kvm.errors import SpecError
from pytest_kvm.host.ssh_keys import KeyPair, new_key_pair
from pytest_kvm.images.image import Image
from pytest_kvm.provision.run_resources import RunResources
from pytest_kvm.provision.start_request import StartRequest
from pytest_kvm.provision.tap_link import tap_name
from pytest_kvm.render.cloud_config import Identity
from pytest_kvm.render.domain_draft import DomainDraft, draft_domain
from pytest_kvm.render.plan import DirectBoot, DomainPlan, NicPlan, SegmentNicPlan
from pytest_kvm.spec.guest import GuestSpec


def draft(resources: RunResources, spec: GuestSpec, *, image: Image) -> DomainDraft:
    """Return the draft of a guest's domain: placeholders stand for what :func:`plan_domain` chooses.

    Raises:
        SpecError: The spec does not fit the image, or its ``xml`` hook returned no element.
    """
    return draft_domain(
        spec,
        accel=resources.accel,
        direct_boot=direct_boot(spec, image, accel=resources.accel),
        run_as=run_as(resources),
    )


def plan_domain(resources: RunResources, request: StartRequest, *, uuid: str, folder: Path) -> DomainPlan:
    """Return the plan of one machine without its disks: names, addresses, sockets, kernel."""
    return DomainPlan(
        name=f"{resources.session}-{request.place}",
        uuid=uuid,
        session=resources.session,
        owner_pid=os.getpid(),
        owner_started=psutil.Process().create_time(),
        accel=resources.accel,
        disks=(),
        control_mac=new_mac(),
        nics=[
            NicPlan(index=index, nic=nic, mac=nic.mac or new_mac())
            for index, nic in enumerate(request.spec.nics)
            if nic.segment is None
        ],
        segment_nics=list(_plan_segment_nics(request, folder)),
        console_log=folder / "console.log",
        console_socket=folder / "console.sock",
        direct_boot=direct_boot(request.spec, request.image, accel=resources.accel),
        genid=str(uuid4()),
        run_as=run_as(resources),
    )


def _plan_segment_nics(request: StartRequest, folder: Path) -> Iterator[SegmentNicPlan]:
    """Yield the cards on segments; those of a template's machine have no addresses, and are on no network."""
    joined = {nic.index: nic for nic in request.nics}
    for index, nic in enumerate(request.spec.nics):
        if nic.segment is not None:
            own, port = joined.get(index), port_path(folder, index)
            network = own.segment.backend.network if own else None
            yield SegmentNicPlan(
                index=index,
                nic=nic,
                mac=own.mac if own else request.tied_macs.get(index) or new_mac(),
                port=port,
                mtu=nic.segment.spec.mtu,
                network=network,
                tap=tap_name(port) if network else "",
                addresses=own.addresses if own else (),
                gateways=tuple(map(str, own.gateways)) if own else (),
            )


def port_path(folder: Path, index: int) -> Path:
    """Return the socket of the switch for a machine's card.

    Args:
        folder: The machine's folder.
        index: Index of the card in the spec's ``nics``.
    """
    return folder / f"nic{index + 1}.sock"


def run_as(resources: RunResources) -> tuple[int, int] | None:
    """Return the user and group id that QEMU is to run as; None: libvirt decides."""
    return (os.getuid(), os.getgid()) if resources.is_system else None


def direct_boot(spec: GuestSpec, image: Image, *, accel: str) -> DirectBoot | None:
    """Return the kernel that QEMU loads itself, or None if the firmware boots the disk.

    Raises:
        SpecError: The spec asks for direct boot, and there is no kernel or no kernel command line.
    """
    kernel = spec.kernel or image.kernel
    if spec.boot == "firmware" or spec.firmware == "uefi":
        return None
    if spec.boot == "auto" and kernel is None and not spec.cmdline_extra:
        return None
    if kernel is None:
        raise SpecError(
            f"GuestSpec: direct boot of {image.name!r}, which brings no kernel",
            resolution='give kernel= and initrd=, or use boot="firmware" without cmdline_extra',
        )
    return DirectBoot(
        kernel=Path(kernel),
        initrd=Path(spec.initrd) if spec.initrd else (None if spec.kernel else image.initrd),
        cmdline=f"{spec.cmdline or _cmdline(spec, image, accel=accel)} {spec.cmdline_extra}".strip(),
    )


def _cmdline(spec: GuestSpec, image: Image, *, accel: str) -> str:
    if not image.cmdline:
        raise SpecError(
            f"GuestSpec.cmdline: nothing says where the root of {image.name!r} is",
            resolution='write cmdline="root=/dev/vda1 console=ttyS0" or what fits the image',
        )
    # The last console is /dev/console, where init reports; the screen comes
    # first so that a screenshot shows something.
    last = "hvc0" if spec.console == "virtio" else "ttyS0"
    # On a busy host a guest under TCG may miss the ticks by which its kernel
    # checks the timer; then it panics: "IO-APIC + timer doesn't work!"
    # (Documentation/admin-guide/kernel-parameters.txt).
    timer = " no_timer_check" if accel == "tcg" else ""
    return f"{image.cmdline}{timer} console=tty0 console={last}"


def new_identity(hostname: str, *, key: KeyPair) -> tuple[str, Identity]:
    """Return a fresh UUID and the identity that goes with it.

    The instance-id is new for every guest, so that cloud-init runs its
    ``per-instance`` modules: they run once for each instance-id.
    """
    domain_uuid = str(uuid4())
    host_key = new_key_pair()
    return domain_uuid, Identity(
        instance_id=domain_uuid,
        hostname=hostname,
        authorized_key=key.public,
        host_private_key=host_key.private,
        host_public_key=host_key.public,
    )


def new_mac() -> str:
    """Return a random MAC address in QEMU's own range (52:54:00, locally administered)."""
    return "52:54:00:" + ":".join(f"{octet:02x}" for octet in secrets.token_bytes(3))


def new_machine_id() -> str:
    """Return a random machine id (``machine-id(5)``)."""
    return uuid4().hex


def is_unique(spec: GuestSpec) -> bool:
    """Say whether each clone of a spec gets a ``machine-id`` and an SSH host key of its own.

    With ``identity="auto"``, clones get them if the guest has a card on a network
    that other guests can join.
    """
    if spec.identity == "auto":
        return any(nic.is_shared for nic in spec.nics)
    return spec.identity == "unique"
