"""Starts machines of guests: clones of a template where cloning works on this host, else cold boots."""

from __future__ import annotations

import logging
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, replace
from functools import partial

from pytest_kvm.boot_cache.template import Template
from pytest_kvm.errors import DomainFailed, GuestGone, KvmError, NoCapacity, SnapshotFailed, StateDamaged
from pytest_kvm.host import run_folder
from pytest_kvm.host.disk_space import why_no_space
from pytest_kvm.images.image import Image
from pytest_kvm.machine import savepoints
from pytest_kvm.machine.boot import Phases
from pytest_kvm.machine.machine import Machine
from pytest_kvm.provision.clone import Clone, start_paused, why_no_clone
from pytest_kvm.provision.cold_boot import power_on, start_again
from pytest_kvm.provision.disk_room import (
    CLONE_MIB,
    COLD_BOOT_MIB,
    LEFT_BY_SPARES_MIB,
    needed_mib,
    no_disk_room,
    run_disk_full_in_words,
)
from pytest_kvm.provision.events import Event, Tier, cold_boot_event
from pytest_kvm.provision.failed_boots import keeping_failed_boot
from pytest_kvm.provision.guest_links import GuestLinks
from pytest_kvm.provision.lab_template import LabTemplates
from pytest_kvm.provision.machine_plan import draft
from pytest_kvm.provision.prepare import PatchingRaceLost, boot_with_second_try, make_ready
from pytest_kvm.provision.run_resources import RunResources
from pytest_kvm.provision.run_templates import RunTemplates, key_of
from pytest_kvm.provision.spare_pool import SparePool
from pytest_kvm.provision.start_request import StartRequest
from pytest_kvm.provision.template_build import TemplateTier
from pytest_kvm.render.domain_draft import DomainDraft
from pytest_kvm.render.plan import DomainPlan
from pytest_kvm.settings import CloneTier, Settings
from pytest_kvm.spec.guest import GuestSpec

_log = logging.getLogger("pytest_kvm.start")

_BASE = "kvm-base"

_TIERS: dict[CloneTier, tuple[TemplateTier, ...]] = {
    "auto": ("cow", "snapshot"),
    "cow": ("cow",),
    "snapshot": ("snapshot",),
    "cold": (),
}
"""Tiers that are tried, in this order, before a cold boot."""


@dataclass(frozen=True, kw_only=True)
class Started:
    """A machine that is ready, and how it was started."""

    machine: Machine
    request: StartRequest
    plan: DomainPlan
    template: Template | None
    """The template of a clone; None after a cold boot."""
    base: str | None = None
    """Name of a savepoint taken when the machine was ready; only after a cold boot: a reset of a clone
    starts another clone instead."""
    undo: ExitStack
    """Removes this machine; the guest's other resources stay."""
    events: tuple[Event, ...]

    @property
    def seconds(self) -> float:
        """Seconds until the machine was ready, including the making of its template."""
        return sum(event.seconds for event in self.events)


class GuestStarter:
    """Starts the guests of one run.

    Args:
        settings: Say which tiers are tried, and how the boot cache is used.
        resources: What the run has opened.
    """

    def __init__(self, settings: Settings, resources: RunResources) -> None:
        self._settings = settings
        self._resources = resources
        self._templates = RunTemplates(settings, resources)
        self.labs = LabTemplates(resources, self._templates)
        self._spares = SparePool(self._start_spare, size=settings.pool, admission=resources.admission)
        self._refused: dict[str, str] = {}
        """Keys of templates that could not be made or cloned in this run, each with the reason."""

    def draft(self, spec: GuestSpec, image: Image) -> DomainDraft:
        """Return the draft of the domain that all machines of a guest share.

        Raises:
            SpecError: The spec does not fit the image, or its ``xml`` hook returned no element.
        """
        return draft(self._resources, spec, image=image)

    def start(self, request: StartRequest) -> Started:
        """Start a machine in the fastest way that works.

        Raises:
            BootFailed: The machine did not become ready.
            GuestGone: Its guest was removed meanwhile.
            HostError: Somebody has removed the run folder.
            ImageError: Somebody has removed the image.
            NetworkFailed: A card cannot be on its network of the host.
            NoCapacity: The run folder's disk has no room for it.
        """
        self._check_places(request, mib=CLONE_MIB)
        with self._full_disk_in_words(request):
            return self._start(request)

    def _start(self, request: StartRequest) -> Started:
        if self._settings.cache == "off":
            return self._boot_cold(request, why="the boot cache is off")
        if tied := [nic.model for nic in request.spec.nics if nic.prevents_clones]:
            why = f"the {tied[0]} cards of clones would all have one MAC address"
            return self._boot_cold(request, why=why)
        problems: list[str] = []
        tiers = _TIERS[self._settings.clone]
        fingerprint = self._templates.fingerprint(request) if tiers else ""
        for tier in tiers:
            key = key_of(fingerprint, tier)
            problem = self._refused.get(key)
            try:
                if problem is None:
                    return self._start_from_template(request, tier, key=key, why="; ".join(problems))
            except (DomainFailed, NoCapacity, SnapshotFailed) as failure:
                self._check_places(request, mib=CLONE_MIB)  # if one is missing, no other way works
                _log.warning("%s: no template (%s): %s", request.name, tier, failure)
                problem = self._refused[key] = f"{tier}: {failure.brief}"
            problems.append(problem)
        return self._boot_cold(request, why="; ".join(problems) or "cold boots were asked for")

    def start_like(self, former: Started, request: StartRequest) -> Started:
        """Start a machine in the same way as a former one.

        Raises:
            BootFailed: The machine did not become ready.
            DomainFailed: The template could not be cloned, in two attempts.
            GuestGone: Its guest was removed meanwhile.
            HostError: Somebody has removed the run folder.
            ImageError: Somebody has removed the image.
            NetworkFailed: A card cannot be on its network of the host.
            NoCapacity: The run folder's disk has no room for it.
        """
        self._check_places(request, mib=needed_mib(former.template))
        with self._full_disk_in_words(request):
            if former.template is None:
                return self._boot_cold(request, why="its first boot was a cold one")
            try:
                return self._start_clone(request, former.template)
            except StateDamaged as failure:
                self._templates.discard(request, former.template, reason=failure.brief)
                return self._start(request)

    def has_room_like(self, former: Started) -> bool:
        """Say whether the disk has room for another machine like a former one, as long as that is there."""
        return not why_no_space(self._resources.folder, mib=needed_mib(former.template))

    def start_again(self, former: Started) -> Started:
        """Start a machine that has ended in a new QEMU, with its own disks, and leave it paused.

        Raises:
            GuestGone: Its guest was removed meanwhile.
            HostError: Somebody has removed the run folder.
            HypervisorError: libvirt refused the domain; the machine stays off.
            ImageError: Somebody has removed the image.
            NoCapacity: The run folder's disk has no room for its boot; the machine stays off.
            SwitchFailed: The switch has ended.
        """
        request = former.request
        self._check_places(request, mib=COLD_BOOT_MIB)
        with self._full_disk_in_words(request), request.teardown.adding():
            machine = start_again(
                self._resources, request, plan=former.plan, former=former.machine, stack=former.undo
            )
        return replace(former, machine=machine, base=None)

    def drop_spares(self, network: str) -> None:
        """Remove the spare clones on a libvirt network, which is about to be removed."""
        self._spares.drop(network)

    def close(self) -> None:
        """Remove the spare clones, and release the templates."""
        self._spares.close()
        self._templates.close()

    def _boot_cold(self, request: StartRequest, *, why: str) -> Started:
        return boot_with_second_try(partial(self._boot_cold_once, request), name=request.name, why=why)

    def _boot_cold_once(self, request: StartRequest, why: str) -> Started:
        with self._resources.boot_turns.turn(request):
            return self._boot_now(request, why)

    def _boot_now(self, request: StartRequest, why: str) -> Started:
        request = replace(request, phases=request.phases.of_next_boot())
        self._check_places(request, mib=COLD_BOOT_MIB)
        request.on_step("power on")
        with request.teardown.adding() as stack:
            undo = stack.enter_context(ExitStack())
            powered = power_on(self._resources, request, stack=undo)
        machine = powered.machine
        try:
            make_ready(machine, request, resources=self._resources)
        except PatchingRaceLost:
            undo.close()  # so that another machine can have its place
            raise
        machine.hosts_file.update(machine, request.host_lines())
        machine.kernel.begin()
        return Started(
            machine=replace(machine, phases=request.phases.seconds()),
            request=request,
            plan=powered.plan,
            template=None,
            base=_take_base(machine) if request.resets else None,
            undo=undo,
            events=(
                cold_boot_event(request.name, spec=request.spec, seconds=request.phases.elapsed(), why=why),
            ),
        )

    def _why_no_space(self, mib: int) -> str:
        """Return what the run folder's disk lacks after spare clones have given way; "" if nothing."""
        why = why_no_space(self._resources.folder, mib=mib)
        if why and self._spares.give_way():
            why = why_no_space(self._resources.folder, mib=mib)
        return why

    def _why_no_room(self, template: Template) -> str:
        why = self._why_no_space(needed_mib(template))
        return f"its clone has no room on the disk: {why}" if why else ""

    def _check_places(self, request: StartRequest, *, mib: int) -> None:
        """Check that the run folder and the image are there, and that the disk has room."""
        run_folder.check_is_there(self._resources.folder)
        request.image.check_is_there()
        if why := self._why_no_space(mib):
            raise no_disk_room(request.name, why)

    def _full_disk_in_words(self, request: StartRequest) -> AbstractContextManager[None]:
        return run_disk_full_in_words(self._resources.folder, f"{request.name}: no room on the disk")

    def _start_from_template(
        self, request: StartRequest, tier: TemplateTier, *, key: str, why: str
    ) -> Started:
        template, made = self._templates.get(request, tier, key=key)
        if refused := why_no_clone(request, template) or self._why_no_room(template):
            started = self._boot_cold(request, why="; ".join(filter(None, (why, refused))))
            return replace(started, events=(*made, *started.events))
        try:
            started = self._start_clone(request, template, why=why)
        except StateDamaged as failure:  # the template is made anew, once
            self._templates.discard(request, template, reason=failure.brief)
            template, made = self._templates.get(request, tier, key=key)
            started = self._start_clone(request, template, why=why)
        return replace(started, events=(*made, *started.events))

    def _start_clone(self, request: StartRequest, template: Template, *, why: str = "") -> Started:
        """Start a clone; if it fails, start another.

        The cause may be over by then: the host was short of memory for a moment,
        or somebody killed QEMU. The template is kept, because other processes
        clone it too, and without it each of them would have to boot.
        """
        try:
            return self._start_clone_once(request, template, why=why)
        except StateDamaged:
            raise
        except DomainFailed as failure:
            request.on_step(f"its clone failed, trying another: {failure.brief}")
            return self._start_clone_once(request, template, why=why)

    def _start_clone_once(self, request: StartRequest, template: Template, *, why: str) -> Started:
        phases = Phases(request.log)
        clone, undo, tier = self._wake_clone(request, template)
        phases.reached("ready")
        self._spares.note_start(request, template)
        return Started(
            machine=replace(clone.machine, phases=phases.seconds()),
            request=request,
            plan=clone.plan,
            template=template,
            undo=undo,
            events=(Event(guest=request.name, kind="clone", tier=tier, seconds=phases.elapsed(), why=why),),
        )

    def _wake_clone(self, request: StartRequest, template: Template) -> tuple[Clone, ExitStack, Tier]:
        spare = self._spares.take(request, template)
        if spare is not None:
            try:
                with request.teardown.adding() as stack:
                    stack.callback(spare.undo.close)
            except GuestGone:
                spare.undo.close()
                raise
            try:
                clone = spare.take()
                request.room.note_process(clone.machine.domain.pid)
                # It may have been started for an earlier guest of these names, whose links are gone.
                machine = replace(clone.machine, links=GuestLinks(request.nics))
                return self._wake(request, replace(clone, machine=machine)), spare.undo, "pool"
            except GuestGone:
                raise
            except KvmError as failure:
                _log.warning("%s: a spare clone did not wake up: %s", request.name, failure)
                spare.undo.close()
        clone, undo = self._start_paused(request, template)
        try:
            with keeping_failed_boot(clone.machine, request, keeping=self._resources.failed_boots):
                return self._wake(request, clone), undo, clone.tier
        except BaseException:
            undo.close()  # so that another machine can have its place
            raise

    def _wake(self, request: StartRequest, clone: Clone) -> Clone:
        with request.teardown.adding():  # once the guest is removed, its links and its ports are gone
            clone.machine.links.attach(clone.machine)
        return clone.wake(host_lines=request.host_lines())

    def _start_spare(self, request: StartRequest, template: Template) -> tuple[Clone, ExitStack]:
        needed = needed_mib(template) + LEFT_BY_SPARES_MIB
        if why := why_no_space(self._resources.folder, mib=needed):
            raise no_disk_room(request.name, why)
        return self._start_paused(request, template)

    def _start_paused(self, request: StartRequest, template: Template) -> tuple[Clone, ExitStack]:
        with request.teardown.attempting() as undo:
            return start_paused(self._resources, request, template=template, stack=undo), undo


def _take_base(machine: Machine) -> str | None:
    """Take the savepoint that resets restore; return None if that fails: each reset is a cold boot then."""
    try:
        savepoints.take([machine], _BASE)
    except SnapshotFailed as failure:
        _log.warning("%s: every reset will be a boot: %s", machine.name, failure)
        return None
    return _BASE
