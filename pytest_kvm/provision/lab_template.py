"""Lab templates: the guests of a lab that was formed, frozen at one moment; later runs start from there.

A lab template is one template for each guest, all with the same id in their
facts. The guests that the first run forms the lab on write to copies of their
templates' memory and disks, so that these can become templates too.
"""

from __future__ import annotations

import hashlib
import json
import logging
import secrets
from collections.abc import Generator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from pytest_kvm.at_once import do_at_once
from pytest_kvm.errors import (
    GuestError,
    HostCommandFailed,
    HypervisorError,
    ImageError,
    NoCapacity,
    SnapshotFailed,
    StateDamaged,
)
from pytest_kvm.machine.renewal import prestart
from pytest_kvm.machine.savepoints import drop_former
from pytest_kvm.provision.clone import Clone, start_paused
from pytest_kvm.provision.derived_template import copy_files
from pytest_kvm.provision.disk_room import COLD_BOOT_MIB, disks_mib
from pytest_kvm.provision.lab_machines import Member, replace_machines
from pytest_kvm.provision.template_build import TemplateFacts, log_out, save

if TYPE_CHECKING:
    from pytest_kvm.boot_cache.template import Building, Template
    from pytest_kvm.machine.renewal import Prestarted
    from pytest_kvm.provision.guest_machines import GuestMachines
    from pytest_kvm.provision.lab_forming import Forming
    from pytest_kvm.provision.run_resources import RunResources
    from pytest_kvm.provision.run_templates import RunTemplates
    from pytest_kvm.provision.start_request import StartRequest
    from pytest_kvm.provision.starter import Started

_log = logging.getLogger("pytest_kvm.cache")

_FORMAT = 1
"""Part of all keys: a lab template of another format is not found."""
_FAILURES = (GuestError, HostCommandFailed, HypervisorError, ImageError, NoCapacity)
"""What can go wrong with a template; the lab is formed without one then."""


class _NoTemplate(Exception):  # noqa: N818 - it is no failure: the lab is formed without a template
    """Raised if a lab cannot be started or frozen as a template; its guests have been begun anew."""


class LabTemplates:
    """Forms labs, or starts their guests as they were when the lab was formed.

    Args:
        resources: What the run has opened.
        templates: The run's templates.
    """

    def __init__(self, resources: RunResources, templates: RunTemplates) -> None:
        self._resources = resources
        self._templates = templates
        self._refused: dict[str, str] = {}
        """Keys of the first guests of labs that cannot be frozen or started in this run, with the reasons."""

    def why_none(self, lab: Sequence[GuestMachines]) -> str:
        """Return why a lab of these guests, which are ready, can have no template; "" if it can."""
        for machines in lab:
            started = machines.current
            if started.template is None:
                return f"{started.request.name} was booted"
            if TemplateFacts.from_json(started.template.manifest.facts).tier != "cow":
                return f"the template of {started.request.name} has no RAM file"
            for nic in started.request.nics:
                if nic.segment.spec.has_addresses_of_its_run:
                    return f"each run has addresses of its own on {nic.segment.name}"
        return ""

    def start(self, lab: Sequence[GuestMachines], forming: Forming) -> str:
        """Have the guests' handles lead to machines that are as the forming leaves them.

        Args:
            lab: The guests, which are ready and unchanged.
            forming: Forms the lab if there is no template of it, or if it could not be frozen.

        Returns:
            Why it had to be formed; "" if it was started from a template.

        Raises:
            GuestGone: A guest was removed meanwhile.
            Exception: Whatever the forming raises.
        """
        members = _members(lab, forming.digest)
        why = self._refused.get(members[0].key, "")
        if not why:
            try:
                return self._start(members, forming)
            except _NoTemplate as refusal:
                why = self._refused[members[0].key] = str(refusal)
        forming.form()
        return why

    def _start(self, members: Sequence[Member], forming: Forming) -> str:
        templates, why = self._find_or_make(members, forming)
        forming.on_step("starting its guests as they were frozen")
        with self._trying(members):
            self._start_clones(members, templates)
        return why

    @contextmanager
    def _trying(self, members: Sequence[Member]) -> Generator[None]:
        """Do a step; if it fails, begin all guests anew, so that the lab can be formed without a template.

        Raises:
            GuestGone: A guest was removed meanwhile.
            _NoTemplate: The step has failed.
        """
        try:
            with self._templates.disk_full_as_no_capacity():
                yield
        except _FAILURES as failure:
            do_at_once([member.machines.start_another for member in members])
            names = ", ".join(map(_name, members))
            _log.warning("%s are formed without a template: %s", names, failure)
            raise _NoTemplate(failure.brief) from failure

    # ------------------------------------------------------------ find and make

    def _find_or_make(self, members: Sequence[Member], forming: Forming) -> tuple[list[Template], str]:
        """Return the guests' templates, and why they had to be made; "" if they were there."""
        if templates := _of_one_moment(self._find(members, forming)):
            return templates, ""
        with ExitStack() as stack:
            with self._trying(members):
                buildings = self._begin_building(members, forming, stack)
            found = self._find(members, forming)
            if templates := _of_one_moment(found):  # another process has made them meanwhile
                return templates, ""
            self._discard(members, found, reason="the templates of its lab's other guests are gone")
            return self._make(members, buildings, forming), "no template yet"

    def _find(self, members: Sequence[Member], forming: Forming) -> list[Template | None]:
        requests = [_telling(member, forming) for member in members]
        return [
            self._templates.find(request, key=member.key)
            for member, request in zip(members, requests, strict=True)
        ]

    def _discard(
        self, members: Sequence[Member], templates: Sequence[Template | None], *, reason: str
    ) -> None:
        for member, template in zip(members, templates, strict=True):
            if template is not None:
                self._templates.discard(member.current.request, template, reason=reason)

    def _begin_building(
        self, members: Sequence[Member], forming: Forming, stack: ExitStack
    ) -> list[Building]:
        """Hold the right to make all the templates.

        It is taken in one order, so that no two processes wait for each other.
        Each asks for room for the files of those before it as well, which are still empty.
        """
        in_order = sorted(members, key=lambda member: member.key)
        buildings: dict[str, Building] = {}
        ram_mib = disk_mib = 0
        for member in in_order:
            ram_mib += member.current.request.spec.memory_kib // 1024
            disk_mib += COLD_BOOT_MIB + disks_mib(member.template)
            building = self._templates.building(
                _telling(member, forming), key=member.key, ram_mib=ram_mib, disk_mib=disk_mib
            )
            buildings[member.key] = stack.enter_context(building)
        return [buildings[member.key] for member in members]

    def _make(
        self, members: Sequence[Member], buildings: Sequence[Building], forming: Forming
    ) -> list[Template]:
        """Form the lab on copies of its guests' templates, and freeze it."""
        with self._trying(members):
            self._start_copies(members, buildings)
        forming.form()
        forming.on_step("freezing")
        with self._trying(members):
            return self._freeze(members, buildings, forming)

    # ------------------------------------------------------------ machines

    def _start_copies(self, members: Sequence[Member], buildings: Sequence[Building]) -> None:
        """Start all guests from copies of their templates, each with its own names and addresses."""

        def start(member: Member, request: StartRequest, stack: ExitStack) -> Clone:
            building = buildings[members.index(member)]
            base = member.template
            try:
                files = copy_files(request.spec, base=base, building=building)
                return start_paused(self._resources, request, template=base, stack=stack, files=files)
            except StateDamaged as failure:
                self._templates.discard(request, base, reason=failure.brief)
                raise

        replace_machines(members, start, known_addresses=None)

    def _start_clones(self, members: Sequence[Member], templates: Sequence[Template]) -> None:
        """Start all guests as they were frozen."""

        def start(member: Member, request: StartRequest, stack: ExitStack) -> Clone:
            template = templates[members.index(member)]
            return start_paused(self._resources, request, template=template, stack=stack, is_itself=True)

        nics = [nic for member in members for nic in member.current.request.nics]
        known = frozenset(str(address) for nic in nics for address in (nic.address, nic.address6))
        try:
            replace_machines(members, start, known_addresses=known)
        except StateDamaged as failure:
            self._discard(members, templates, reason=failure.brief)
            raise

    def _freeze(
        self, members: Sequence[Member], buildings: Sequence[Building], forming: Forming
    ) -> list[Template]:
        """Save all guests at one moment, and publish what they have become."""
        machines = [member.current.machine for member in members]
        for machine in machines:
            drop_former(machine, machine.savepoints)  # no later run could restore them, and they take room
        do_at_once([partial(log_out, machine) for machine in machines])
        waiting = do_at_once([partial(prestart, machine) for machine in machines])
        do_at_once([machine.links.detach for machine in machines])
        do_at_once([machine.domain.suspend for machine in machines])
        do_at_once([partial(_save, *pair) for pair in zip(members, buildings, strict=True)])
        if forming.digest_again() != forming.digest:
            raise SnapshotFailed(
                f"what {forming.name} depends on changed while it was formed",
                resolution="files that depends_on= names must not change during a run",
            )
        lab = secrets.token_hex(8)
        return do_at_once(
            [
                partial(
                    self._templates.publish,
                    building,
                    summary=f"lab template {forming.name}, {_name(member)}: {member.current.request.spec!r}",
                    facts=_facts(member, each, lab=lab),
                )
                for member, building, each in zip(members, buildings, waiting, strict=True)
            ]
        )


def _of_one_moment(templates: Sequence[Template | None]) -> list[Template]:
    """Return the templates if each guest has one, and all were frozen together; else none."""
    found = [template for template in templates if template is not None]
    labs = {TemplateFacts.from_json(template.manifest.facts).lab for template in found}
    return found if len(found) == len(templates) and len(labs) == 1 else []


def _telling(member: Member, forming: Forming) -> StartRequest:
    """Return a guest's request whose steps are the lab's."""
    return replace(member.current.request, on_step=forming.on_step)


def _members(lab: Sequence[GuestMachines], digest: str) -> list[Member]:
    """Return a lab's members by name, each with a key that depends on all members and on the function."""
    lab = sorted(lab, key=lambda machines: machines.current.request.name)
    templates = [_template_of(machines.current) for machines in lab]
    own_facts = [machines.current.request.own_facts for machines in lab]
    common = json.dumps([_FORMAT, digest, [template.key for template in templates], own_facts])
    return [
        Member(
            machines=machines,
            key=hashlib.sha256(f"{common} {machines.current.request.name}".encode()).hexdigest(),
            template=template,
        )
        for machines, template in zip(lab, templates, strict=True)
    ]


def _name(member: Member) -> str:
    return member.current.request.name


def _template_of(started: Started) -> Template:
    if started.template is None:
        raise SnapshotFailed(f"{started.request.name} has no template")
    return started.template


def _save(member: Member, building: Building) -> None:
    started = member.current
    save(started.machine, started.request, plan=started.plan, building=building, tier="cow")


def _facts(member: Member, waiting: Prestarted | None, *, lab: str) -> TemplateFacts:
    """Return what starting a guest of the frozen lab has to know."""
    started, base = member.current, TemplateFacts.from_json(member.template.manifest.facts)
    *disks, _seed = started.plan.disks
    return replace(
        base,
        control_mac=started.plan.control_mac,
        macs=tuple(planned.mac for planned in started.plan.all_nics),
        hostname=started.request.hostname,
        host_key=started.machine.access.host_key,
        disks=tuple((disk.path.name, disk.format) for disk in disks),
        prestarted=() if waiting is None else (waiting,),
        lab=lab,
    )
