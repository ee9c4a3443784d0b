"""Starts machines of guests: clones of a template where cloning works on this host, else cold boots."""

from __future__ import annotations

import logging
import time
from contextlib import ExitStack
from dataclasses import dataclass, replace

from pytest_kvm.boot_cache.template import Template
from pytest_kvm.errors import DomainFailed, KvmError, NoCapacity, SnapshotFailed, StateDamaged
from pytest_kvm.images.image import Image
from pytest_kvm.machine import savepoints
from pytest_kvm.machine.boot import Phases
from pytest_kvm.machine.machine import Machine
from pytest_kvm.provision.clone import Clone, start_paused
from pytest_kvm.provision.cold_boot import power_on
from pytest_kvm.provision.events import Event, Tier
from pytest_kvm.provision.machine_plan import draft
from pytest_kvm.provision.order import Order
from pytest_kvm.provision.prepare import make_ready
from pytest_kvm.provision.run_resources import RunResources
from pytest_kvm.provision.run_templates import RunTemplates, key_of
from pytest_kvm.provision.spare_pool import SparePool
from pytest_kvm.provision.template_build import TemplateTier
from pytest_kvm.render.domain_draft import DomainDraft
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
    order: Order
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
        self._spares = SparePool(self._start_paused, size=settings.pool)
        self._refused: dict[str, str] = {}
        """Keys of templates that could not be made or cloned in this run, each with the reason."""

    def draft(self, spec: GuestSpec, image: Image) -> DomainDraft:
        """Return the draft of the domain that all machines of a guest share.

        Raises:
            SpecError: The spec does not fit the image, or its ``xml`` hook returned no element.
        """
        return draft(self._resources, spec, image=image)

    def start(self, order: Order) -> Started:
        """Start a machine in the fastest way that works.

        Raises:
            BootFailed: The machine did not become ready.
            GuestGone: Its guest was removed meanwhile.
        """
        if self._settings.cache == "off":
            return self._boot_cold(order, why="the boot cache is off")
        problems: list[str] = []
        tiers = _TIERS[self._settings.clone]
        fingerprint = self._templates.fingerprint(order) if tiers else ""
        for tier in tiers:
            key = key_of(fingerprint, tier)
            problem = self._refused.get(key)
            try:
                if problem is None:
                    return self._start_from_template(order, tier, key=key, why="; ".join(problems))
            except (DomainFailed, NoCapacity, SnapshotFailed) as failure:
                _log.warning("%s: no template (%s): %s", order.name, tier, failure)
                problem = self._refused[key] = f"{tier}: {failure.brief}"
            problems.append(problem)
        return self._boot_cold(order, why="; ".join(problems) or "cold boots were asked for")

    def start_like(self, former: Started, order: Order) -> Started:
        """Start a machine in the same way as a former one.

        Raises:
            BootFailed: The machine did not become ready.
            DomainFailed: The template could not be cloned, in two attempts.
            GuestGone: Its guest was removed meanwhile.
        """
        if former.template is None:
            return self._boot_cold(order, why="its first boot was a cold one")
        try:
            return self._start_clone(order, former.template)
        except StateDamaged as failure:
            self._templates.discard(order, former.template, reason=failure.brief)
            return self.start(order)

    def close(self) -> None:
        """Remove the spare clones, and release the templates."""
        self._spares.close()
        self._templates.close()

    def _boot_cold(self, order: Order, *, why: str) -> Started:
        order.on_step("power on")
        with order.teardown.adding() as stack:
            undo = stack.enter_context(ExitStack())
            machine = power_on(self._resources, order, stack=undo).machine
        make_ready(machine, order)
        return Started(
            machine=replace(machine, phases=order.phases.seconds()),
            order=order,
            template=None,
            base=_take_base(machine) if order.resets else None,
            undo=undo,
            events=(_boot_event(order, seconds=order.phases.elapsed(), why=why),),
        )

    def _start_from_template(self, order: Order, tier: TemplateTier, *, key: str, why: str) -> Started:
        template, boot = self._get_template(order, tier, key=key)
        try:
            started = self._start_clone(order, template, why=why)
        except StateDamaged as failure:  # the template is made anew, once
            self._templates.discard(order, template, reason=failure.brief)
            template, boot = self._get_template(order, tier, key=key)
            started = self._start_clone(order, template, why=why)
        return replace(started, events=(*boot, *started.events))

    def _get_template(
        self, order: Order, tier: TemplateTier, *, key: str
    ) -> tuple[Template, tuple[Event, ...]]:
        """Return a template, and the event of its boot if it had to be made."""
        begun = time.monotonic()
        template, why = self._templates.get(order, tier, key=key)
        seconds = time.monotonic() - begun
        return template, (_boot_event(order, seconds=seconds, why=why),) if why else ()

    def _start_clone(self, order: Order, template: Template, *, why: str = "") -> Started:
        """Start a clone; if it fails, start another.

        The cause may be over by then: the host was short of memory for a moment,
        or somebody killed QEMU. The template is kept, because other processes
        clone it too, and without it each of them would have to boot.
        """
        try:
            return self._start_clone_once(order, template, why=why)
        except StateDamaged:
            raise
        except DomainFailed as failure:
            order.on_step(f"its clone failed, trying another: {failure.brief}")
            return self._start_clone_once(order, template, why=why)

    def _start_clone_once(self, order: Order, template: Template, *, why: str) -> Started:
        phases = Phases(order.log)
        clone, undo, tier = self._wake_clone(order, template)
        phases.reached("ready")
        self._spares.note_start(order, template)
        return Started(
            machine=replace(clone.machine, phases=phases.seconds()),
            order=order,
            template=template,
            undo=undo,
            events=(Event(guest=order.name, kind="clone", tier=tier, seconds=phases.elapsed(), why=why),),
        )

    def _wake_clone(self, order: Order, template: Template) -> tuple[Clone, ExitStack, Tier]:
        spare = self._spares.take(order, template)
        if spare is not None:
            with order.teardown.adding() as stack:
                stack.callback(spare.undo.close)
            try:
                return spare.take().wake(), spare.undo, "pool"
            except KvmError as failure:
                _log.warning("%s: a spare clone did not wake up: %s", order.name, failure)
                spare.undo.close()
        clone, undo = self._start_paused(order, template)
        try:
            return clone.wake(), undo, clone.tier
        except BaseException:
            undo.close()  # so that another machine can have its place
            raise

    def _start_paused(self, order: Order, template: Template) -> tuple[Clone, ExitStack]:
        with order.teardown.attempting() as undo:
            return start_paused(self._resources, order, template=template, stack=undo), undo


def _boot_event(order: Order, *, seconds: float, why: str) -> Event:
    spec = repr(order.spec)
    return Event(guest=order.name, kind="boot", tier="cold", seconds=seconds, why=why, spec=spec)


def _take_base(machine: Machine) -> str | None:
    """Take the savepoint that resets restore; return None if that fails: each reset is a cold boot then."""
    try:
        savepoints.take(machine, _BASE)
    except SnapshotFailed as failure:
        _log.warning("%s: every reset will be a boot: %s", machine.name, failure)
        return None
    return _BASE
