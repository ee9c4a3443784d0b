"""Derives a template with cards on segments from the template of the same guest without them.

The cards are plugged into a copy of that template, which takes seconds. So guests
that differ only in their cards on segments need one cold boot together.
"""

from __future__ import annotations

import shutil
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from pytest_kvm.boot_cache.template import Building, Template
from pytest_kvm.errors import WaitTimeout
from pytest_kvm.images.qemu_img import copy_sparse
from pytest_kvm.machine.card_drivers import check_drivers
from pytest_kvm.provision.clone import Clone, StateFiles, frozen_disks, start_paused
from pytest_kvm.provision.disks import copies_of
from pytest_kvm.provision.guest_links import open_ports
from pytest_kvm.provision.machine_plan import plan_domain
from pytest_kvm.provision.run_resources import RunResources
from pytest_kvm.provision.start_request import StartRequest
from pytest_kvm.provision.template_build import KEY, RAM, SEED, TemplateFacts, TemplateTier, freeze
from pytest_kvm.render.plan import RamFile
from pytest_kvm.spec.cloudinit import CloudInit
from pytest_kvm.waiting import NotYet, wait_until

if TYPE_CHECKING:
    from pytest_kvm.machine.machine import Machine
    from pytest_kvm.spec.guest import GuestSpec

_LOOK_EVERY = 0.1
_BY_ITSELF = 10.0
"""Seconds for the guest's kernel to notice a card, which takes a second or two under TCG."""
_RESCAN = "echo 1 >/sys/bus/pci/rescan && udevadm settle"
"""Has the kernel look for cards. Not for all kernels, as the log has some ten lines more after each."""


def can_derive(spec: GuestSpec, tier: TemplateTier) -> bool:
    """Say whether a guest's template can be derived from the one without its cards on segments.

    What the spec itself runs while the guest boots has to find the cards: then the
    guest is booted with them.
    """
    has_cards = any(nic.segment is not None for nic in spec.nics)
    may_look = (
        *(spec.prepare, spec.units, spec.cmdline, spec.cmdline_extra, spec.initrd),
        spec.cloud_init != CloudInit(),
    )
    return tier == "cow" and has_cards and not any(may_look)


def without_segments(request: StartRequest) -> StartRequest:
    """Return the request of the same machine without cards on segments."""
    domain = request.domain.without_segments()
    return replace(request, spec=domain.spec, domain=domain, nics=(), tied_macs={})


def copy_files(spec: GuestSpec, *, base: Template, building: Building) -> StateFiles:
    """Copy the files of a template, for a machine that will write to them.

    Raises:
        HostCommandFailed: A file could not be copied.
        ImageError: A copy cannot be read.
        StateDamaged: The template's files are gone.
    """
    base.check_is_there()
    folder = building.folder
    for name in (SEED, KEY):
        shutil.copyfile(base.path(name), folder / name)
        (folder / name).chmod(0o600)
    copy_sparse(base.path(RAM), building.ram)
    frozen = frozen_disks(base, TemplateFacts.from_json(base.manifest.facts))
    return StateFiles(
        disks=copies_of(spec, frozen, seed=folder / SEED, folder=folder),
        ram_file=RamFile(path=building.ram, shared=True, incoming=True),
    )


def start_copy(
    resources: RunResources, request: StartRequest, *, base: Template, files: StateFiles, stack: ExitStack
) -> Clone:
    """Start a machine from the copy of a template, and leave it paused; it has no cards on segments.

    Args:
        resources: What the run has opened.
        request: The machine that the new template is made for.
        base: The template without the cards.
        files: What :func:`copy_files` has copied of it.
        stack: Undoes every step, last first.

    Raises:
        DomainFailed: The state does not fit, or libvirt refused the domain.
    """
    bare = without_segments(request)
    # A template keeps the names and keys of its base: each clone gets its own.
    bare = replace(bare, spec=replace(bare.spec, identity="shared"))
    clone = start_paused(resources, bare, template=base, stack=stack, files=files)
    whole = plan_domain(resources, request, uuid=clone.plan.uuid, folder=clone.machine.folder)
    nics = [replace(planned, mac=had.mac) for planned, had in zip(whole.nics, clone.plan.nics, strict=True)]
    plan = replace(clone.plan, nics=nics, segment_nics=whole.segment_nics)
    open_ports(resources.switch, plan, stack=stack)
    return replace(clone, plan=plan)


def freeze_with_cards(
    clone: Clone, request: StartRequest, *, base: Template, building: Building
) -> TemplateFacts:
    """Wake a machine that :func:`start_copy` has started, plug its cards in, and freeze it.

    Raises:
        DomainFailed: QEMU refused a card.
        GuestError: The guest could not be woken, or does not use a card.
    """
    clone = clone.wake()
    machine = clone.machine
    # One after the other: a kernel with net.ifnames=0 numbers them as they come.
    for card, planned in zip(request.domain.segment_cards(clone.plan), clone.plan.segment_nics, strict=True):
        machine.domain.qmp("netdev_add", card.netdev)
        machine.domain.qmp("device_add", card.device)
        _wait_found(machine, planned.mac)
    machine.shell.run("udevadm settle && sync", user="root")
    return freeze(
        machine,
        request,
        plan=clone.plan,
        building=building,
        tier="cow",
        boot_seconds=TemplateFacts.from_json(base.manifest.facts).boot_seconds,
        prestarted=clone.prestarted,
    )


def _wait_found(machine: Machine, mac: str) -> None:
    """Wait until the guest has a network interface with a MAC address."""
    wait = partial(
        wait_until,
        partial(_check_found, machine, mac),
        describe=f"the network card {mac} in {machine.name}",
        every=_LOOK_EVERY,
        clock=machine.domain.clock,
    )
    try:
        wait(timeout=_BY_ITSELF)
    except WaitTimeout:
        machine.shell.run(_RESCAN, user="root")
        check_drivers(machine)
        wait(timeout=machine.timeouts.agent)


def _check_found(machine: Machine, mac: str) -> None:
    # Not checked: cat fails if an interface gets its name at this moment.
    addresses = machine.shell.run("cat /sys/class/net/*/address", check=False).stdout.split()
    if mac not in addresses:
        raise NotYet(f"it has {' '.join(addresses)}")
