"""Starts clones of a template: with copy-on-write disks and memory, or from a snapshot in copied disks."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from uuid import uuid4

from pytest_kvm.boot_cache.template import Template
from pytest_kvm.host.ssh_keys import new_key_pair
from pytest_kvm.hypervisor.protocol import Domain
from pytest_kvm.machine.machine import Machine
from pytest_kvm.machine.network_services import CardNetwork
from pytest_kvm.machine.renewal import Prestarted, Renewal, renew
from pytest_kvm.provision.cold_boot import (
    apply_link_state,
    assemble_machine,
    destroying,
    guest_folder,
    paused_domain,
)
from pytest_kvm.provision.disks import FrozenDisk, copies_of, overlays_of
from pytest_kvm.provision.guest_links import open_ports
from pytest_kvm.provision.machine_plan import is_unique, new_machine_id, plan_domain
from pytest_kvm.provision.run_resources import RunResources
from pytest_kvm.provision.start_request import StartRequest
from pytest_kvm.provision.template_build import (
    CONSOLE,
    KEY,
    RAM,
    SEED,
    SNAPSHOT,
    STATE,
    TemplateFacts,
    TemplateTier,
)
from pytest_kvm.render.plan import DiskPlan, DomainPlan, RamFile


def frozen_disks(template: Template, facts: TemplateFacts) -> list[FrozenDisk]:
    """Return the template's disks, the root disk first, without its seed."""
    return [(template.path(name), kind) for name, kind in facts.disks]


@dataclass(frozen=True, kw_only=True)
class StateFiles:
    """What a machine has its disks and its memory in."""

    disks: list[DiskPlan]
    ram_file: RamFile


@dataclass(frozen=True, kw_only=True)
class Clone:
    """A machine started from a template; paused in the template's state until :meth:`wake`."""

    machine: Machine
    plan: DomainPlan
    tier: TemplateTier
    renewal: Renewal
    """What :meth:`wake` changes in the clone, so that it differs from other clones."""
    prestarted: tuple[Prestarted, ...]
    """Renewal scripts that wait in the guest; each can be used once."""

    def wake(self, *, host_lines: Sequence[str] = ()) -> Clone:
        """Resume and renew the machine, and begin to watch its kernel.

        Returns:
            The clone with the renewal scripts that are left.

        Args:
            host_lines: Lines to append to its hosts file; only once for each clone.

        Raises:
            GuestError: The machine could not be renewed.
        """
        first, rest = (self.prestarted[0], self.prestarted[1:]) if self.prestarted else (None, ())
        renewal = replace(self.renewal, hosts=self.machine.hosts_file.append(host_lines))
        self.machine.domain.resume()
        renew(self.machine, renewal, prestarted=first)
        self.machine.kernel.begin()
        return replace(self, renewal=Renewal(), prestarted=rest)


def why_no_clone(request: StartRequest, template: Template) -> str:
    """Return why a machine that could be cloned from a template should not be, "" if it should."""
    facts = TemplateFacts.from_json(template.manifest.facts)
    is_set_up = any(nic.addresses or request.spec.nics[nic.index].uses_dhcp for nic in request.nics)
    if facts.network_service is not None or not is_set_up:
        return ""
    return (
        "a clone would lose its addresses at a reboot, because the guest runs neither systemd-networkd, "
        "NetworkManager nor ifupdown"
    )


def start_paused(
    resources: RunResources,
    request: StartRequest,
    *,
    template: Template,
    stack: ExitStack,
    files: StateFiles | None = None,
    is_itself: bool = False,
) -> Clone:
    """Start a clone of a template and leave it paused.

    Args:
        resources: What the run has opened.
        request: The machine that is asked for.
        template: It is read and never written to.
        stack: Undoes every step, last first; closing it removes the clone.
        files: Copies of the template's disks and memory, which the clone writes to, so that another
            template can be made of it. Only for the tier ``cow``; None: nothing is copied before it
            is written to.
        is_itself: Whether the template was made of this very guest, so that the clone keeps all names,
            addresses and keys.

    Raises:
        DomainFailed: The state does not fit, or libvirt refused the domain.
        StateDamaged: The same, or the template's files are gone.
    """
    template.check_is_there()
    facts = TemplateFacts.from_json(template.manifest.facts)
    folder = stack.enter_context(guest_folder(resources, request.place))
    plan = plan_domain(resources, request, uuid=str(uuid4()), folder=folder)
    plan = _of_clone(plan, facts, keeps_macs=is_itself)
    shutil.copyfile(template.path(CONSOLE), plan.console_log)
    fill = partial(_from_ram_file, files=files) if facts.tier == "cow" else _from_snapshot
    open_ports(resources.switch, plan, stack=stack)
    plan, domain = fill(resources, request, plan, template=template, facts=facts, stack=stack)
    apply_link_state(domain, request)
    renewal = Renewal() if is_itself else _renewal_of(request, facts, plan)
    host_key = facts.host_key if renewal.host_key is None else renewal.host_key.public
    machine = assemble_machine(
        resources, request, plan=plan, domain=domain, host_key=host_key, key_file=template.path(KEY)
    )
    stack.callback(machine.shell.close)
    return Clone(machine=machine, plan=plan, tier=facts.tier, renewal=renewal, prestarted=facts.prestarted)


def _of_clone(plan: DomainPlan, facts: TemplateFacts, *, keeps_macs: bool) -> DomainPlan:
    """Return a machine's plan with the MAC addresses that the template's saved state names."""
    lone = [
        replace(planned, mac=mac) if keeps_macs or planned.nic.is_tied_to_mac else planned
        for planned, mac in zip(plan.nics, facts.macs, strict=False)  # the rest are on segments
    ]
    return replace(plan, control_mac=facts.control_mac, nics=lone, continues_log=True)


def _from_ram_file(
    resources: RunResources,
    request: StartRequest,
    plan: DomainPlan,
    *,
    template: Template,
    facts: TemplateFacts,
    stack: ExitStack,
    files: StateFiles | None,
) -> tuple[DomainPlan, Domain]:
    """Map the template's memory copy-on-write, or its copy, and load the state of the devices."""
    if files is None:
        folder = plan.console_log.parent
        frozen = frozen_disks(template, facts)
        files = StateFiles(
            disks=overlays_of(request.spec, frozen, seed=template.path(SEED), folder=folder),
            ram_file=RamFile(path=template.path(RAM), shared=False, incoming=True),
        )
    plan = replace(plan, disks=files.disks, ram_file=files.ram_file)
    domain = stack.enter_context(paused_domain(resources, request.domain.filled_in(plan)))
    with template.path(STATE).open("rb") as source:
        domain.load_state(source)
    return plan, domain


def _from_snapshot(
    resources: RunResources,
    request: StartRequest,
    plan: DomainPlan,
    *,
    template: Template,
    facts: TemplateFacts,
    stack: ExitStack,
) -> tuple[DomainPlan, Domain]:
    """Copy the template's disks with the snapshot in them, and have libvirt start the domain from it."""
    folder = plan.console_log.parent
    frozen = frozen_disks(template, facts)
    plan = replace(plan, disks=copies_of(request.spec, frozen, seed=template.path(SEED), folder=folder))
    domain = resources.hypervisor.create_from_snapshot(
        request.domain.filled_in(plan), snapshot=SNAPSHOT, paused=True
    )
    return plan, stack.enter_context(destroying(domain))


def _renewal_of(request: StartRequest, facts: TemplateFacts, plan: DomainPlan) -> Renewal:
    """Return what has to be changed in a clone, so that it differs from other clones of its template."""
    new = [planned.mac for planned in plan.all_nics]
    macs = [(was, now) for was, now in zip(facts.macs, new, strict=True) if was != now]
    hostname = (
        request.spec.hostname or facts.hostname if request.spec.identity == "shared" else request.hostname
    )
    unique = is_unique(request.spec)
    return Renewal(
        hostname=hostname if hostname != facts.hostname else None,
        machine_id=new_machine_id() if unique else None,
        host_key=new_key_pair() if unique else None,
        macs=macs,
        networks=[
            CardNetwork(
                mac=nic.mac,
                mtu=nic.mtu,
                addresses=nic.addresses,
                dhcp=nic.nic.uses_dhcp,
                gateways=nic.gateways,
                metric=nic.metric,
            )
            for nic in plan.segment_nics
            if nic.is_configured
        ],
        network_service=facts.network_service,
        renews_leases=any(nic.uses_dhcp and (macs or nic.segment is not None) for nic in request.spec.nics),
    )
