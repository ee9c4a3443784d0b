"""How a guest comes to run: cloned from a template where that works here, else booted cold."""

from __future__ import annotations

import logging
import time
from contextlib import ExitStack
from dataclasses import dataclass, replace

from pytest_kvm.errors import DomainFailed, KvmError, NoCapacity, SnapshotFailed, StateDamaged
from pytest_kvm.machine import savepoints
from pytest_kvm.machine.boot import Phases
from pytest_kvm.machine.machine import Machine
from pytest_kvm.provision.bootcache import BootCache, Job, make_ready
from pytest_kvm.provision.clone import Clone, restored
from pytest_kvm.provision.events import Event, Tier
from pytest_kvm.provision.gate import Gate
from pytest_kvm.provision.guests import Order, powered_on
from pytest_kvm.provision.host import Host
from pytest_kvm.provision.pool import Pool
from pytest_kvm.provision.template import TemplateTier
from pytest_kvm.settings import CloneTier, Settings
from pytest_kvm.templates.template import Template

_log = logging.getLogger("pytest_kvm.start")

_BASE = "kvm-base"

_TIERS: dict[CloneTier, tuple[TemplateTier, ...]] = {
    "auto": ("cow", "snapshot"),
    "cow": ("cow",),
    "snapshot": ("snapshot",),
    "cold": (),
}
"""What is tried, in order, before a cold boot."""


@dataclass(frozen=True, kw_only=True)
class Started:
    """A guest that is ready, and how it got there."""

    machine: Machine
    order: Order
    template: Template | None
    """What it was cloned from; None after a cold boot."""
    base: str | None = None
    """Savepoint taken when it was ready, where starting it again would take a boot."""
    undo: ExitStack
    """Removes this machine, and leaves the rest of what the guest holds."""
    events: tuple[Event, ...]

    @property
    def seconds(self) -> float:
        """From the beginning to ready, whatever had to be done."""
        return sum(event.seconds for event in self.events)


class Starting:
    """Starts one run's guests.

    Args:
        settings: Which tier, and what to do with the boot cache.
        host: What the run stands on.
    """

    def __init__(self, settings: Settings, host: Host) -> None:
        self._settings = settings
        self._host = host
        self._cache = BootCache(settings, host)
        self._pool = Pool(self._clone, size=settings.pool)
        self._refused: dict[str, str] = {}
        """Keys of templates that cannot be had here, and why."""

    def start(self, job: Job) -> Started:
        """Start a guest by the fastest way that works.

        Raises:
            BootFailed: It did not become ready.
            GuestGone: It was given up meanwhile.
        """
        if self._settings.cache == "off":
            return self._cold(job, why="the boot cache is off")
        problems: list[str] = []
        for tier in _TIERS[self._settings.clone]:
            key = self._cache.key(job.order, tier)
            problem = self._refused.get(key)
            try:
                if problem is None:
                    return self._from_template(job, tier, why="; ".join(problems))
            except (DomainFailed, NoCapacity, SnapshotFailed) as failure:
                _log.warning("%s: no template (%s): %s", job.order.name, tier, failure)
                problem = self._refused[key] = f"{tier}: {failure.brief}"
            problems.append(problem)
        return self._cold(job, why="; ".join(problems) or "cold boots were asked for")

    def again(self, former: Started, job: Job) -> Started:
        """Start a machine like a former one.

        Raises:
            BootFailed: It did not become ready.
            DomainFailed: It could not be cloned, twice.
            GuestGone: The guest was given up meanwhile.
        """
        if former.template is None:
            return self._cold(job, why="its first boot was a cold one")
        try:
            return self._cloned(job, former.template)
        except StateDamaged as failure:
            self._cache.discard(job, former.template, reason=failure.brief)
            return self.start(job)

    def close(self) -> None:
        """Remove what was started ahead of need, and let go of the templates."""
        self._pool.close()
        self._cache.close()

    def _cold(self, job: Job, *, why: str) -> Started:
        order, phases = job.order, job.phases
        job.tell("power on")
        with job.gate.holding() as stack:
            undo = stack.enter_context(ExitStack())
            machine = powered_on(self._host, order, stack=undo).machine
        make_ready(machine, job)
        return Started(
            machine=replace(machine, phases=phases.seconds()),
            order=order,
            template=None,
            base=_saved(machine) if order.resets else None,
            undo=undo,
            events=(_boot(order, seconds=phases.elapsed(), why=why),),
        )

    def _from_template(self, job: Job, tier: TemplateTier, *, why: str) -> Started:
        template, made_in = self._had(job, tier)
        try:
            started = self._cloned(job, template, why=why)
        except StateDamaged as failure:  # it is made anew, once
            self._cache.discard(job, template, reason=failure.brief)
            template, made_in = self._had(job, tier)
            started = self._cloned(job, template, why=why)
        if made_in is None:
            return started
        boot = _boot(job.order, seconds=made_in, why="no template yet")
        return replace(started, events=(boot, *started.events))

    def _had(self, job: Job, tier: TemplateTier) -> tuple[Template, float | None]:
        """Return a template, and the seconds it took if it had to be made."""
        begun = time.monotonic()
        template, made = self._cache.template(job, tier)
        return template, time.monotonic() - begun if made else None

    def _cloned(self, job: Job, template: Template, *, why: str = "") -> Started:
        """Start a clone; one that fails is followed by another.

        What it failed for may have passed: a host that was short of memory for
        a moment, a QEMU that somebody killed. The template stays: other
        processes clone it too, and each of them would have to boot.
        """
        try:
            return self._cloned_once(job, template, why=why)
        except StateDamaged:
            raise
        except DomainFailed as failure:
            job.tell(f"its clone failed, trying another: {failure.brief}")
            return self._cloned_once(job, template, why=why)

    def _cloned_once(self, job: Job, template: Template, *, why: str) -> Started:
        order = job.order
        phases = Phases(order.log)
        clone, undo, tier = self._awake(job, template)
        phases.reached("ready")
        self._pool.used(order, template)
        return Started(
            machine=replace(clone.machine, phases=phases.seconds()),
            order=order,
            template=template,
            undo=undo,
            events=(Event(guest=order.name, kind="clone", tier=tier, seconds=phases.elapsed(), why=why),),
        )

    def _awake(self, job: Job, template: Template) -> tuple[Clone, ExitStack, Tier]:
        order, gate = job.order, job.gate
        parked = self._pool.take(order, template)
        if parked is not None:
            with gate.holding() as stack:
                stack.callback(parked.undo.close)
            try:
                return parked.take().wake(), parked.undo, "pool"
            except KvmError as failure:
                _log.warning("%s: a parked clone did not wake up: %s", order.name, failure)
                parked.undo.close()
        clone, undo = self._clone(order, template, gate)
        try:
            return clone.wake(), undo, clone.tier
        except BaseException:
            undo.close()  # its place is free for another
            raise

    def _clone(self, order: Order, template: Template, gate: Gate) -> tuple[Clone, ExitStack]:
        with gate.trying() as undo:
            return restored(self._host, order, template=template, stack=undo), undo


def _boot(order: Order, *, seconds: float, why: str) -> Event:
    spec = repr(order.spec)
    return Event(guest=order.name, kind="boot", tier="cold", seconds=seconds, why=why, spec=spec)


def _saved(machine: Machine) -> str | None:
    """Take the savepoint that resets go back to; without one each costs a boot."""
    try:
        savepoints.take(machine, _BASE)
    except SnapshotFailed as failure:
        _log.warning("%s: every reset will be a boot: %s", machine.name, failure)
        return None
    return _BASE
