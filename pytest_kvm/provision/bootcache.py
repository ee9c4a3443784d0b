"""The run's templates: found in the boot cache, or made by the first guest that wants one."""

from __future__ import annotations

import hashlib
import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime
from functools import partial
from importlib.metadata import version

from pytest_kvm.errors import SnapshotFailed
from pytest_kvm.machine.boot import Phases
from pytest_kvm.machine.machine import Machine
from pytest_kvm.machine.readiness import wait_until_ready
from pytest_kvm.provision.fingerprint import fingerprint, machine_facts
from pytest_kvm.provision.gate import Gate
from pytest_kvm.provision.guests import Order
from pytest_kvm.provision.host import Host
from pytest_kvm.provision.prepare import run_steps, write_back
from pytest_kvm.provision.template import TEMPLATE_HOSTNAME, TemplateTier, frozen, template_powered_on
from pytest_kvm.settings import Settings
from pytest_kvm.templates.building import Building
from pytest_kvm.templates.store import TemplateStore
from pytest_kvm.templates.template import Template

_log = logging.getLogger("pytest_kvm.cache")


@dataclass(frozen=True, kw_only=True)
class Job:
    """One guest to be started."""

    order: Order
    gate: Gate
    """Takes hold of what it needs, while it is wanted."""
    phases: Phases
    """Notes how far its boot has come."""
    tell: Callable[[str], None]
    """Is told what comes besides."""


def make_ready(machine: Machine, job: Job) -> None:
    """Wait until a guest that was switched on is ready, and prepare it.

    All that was done to it is on its disks then: a test that pulls the cable
    first thing loses its own writes and no host key.

    Raises:
        BootFailed: It did not become ready, or a step failed.
    """
    spec = job.order.spec
    wait_until_ready(machine, phases=job.phases, units=spec.units, boot_timeout=spec.boot_timeout)
    run_steps(machine, spec.prepare, on_step=job.tell)
    write_back(machine)


class BootCache:
    """Templates in use by this run, until it ends.

    Args:
        settings: Where the cache is and what to do with it.
        host: What the run stands on.
    """

    def __init__(self, settings: Settings, host: Host) -> None:
        self._settings = settings
        self._host = host
        self._store = TemplateStore.of(settings)
        self._began = time.time()
        self._lock = threading.Lock()
        self._in_use: dict[str, Template] = {}

    def key(self, order: Order, tier: TemplateTier) -> str:
        """Return the key of the template that an order can be cloned from."""
        facts = machine_facts(self._host.hypervisor.facts(), accel=self._host.accel)
        key = fingerprint(order.spec, image=order.image, machine=facts)
        return key if tier == "cow" else hashlib.sha256(f"{key} {tier}".encode()).hexdigest()

    def template(self, job: Job, tier: TemplateTier) -> tuple[Template, bool]:
        """Return the template that a guest is cloned from, and whether it had to be made.

        Raises:
            BootFailed: Its guest did not become ready.
            DomainFailed: QEMU cannot save the state of one of its devices.
            GuestGone: The guest was given up meanwhile.
            NoCapacity: There is no room for it.
        """
        key = self.key(job.order, tier)
        template = self._claimed(key, job)
        if template is not None:
            return template, False
        ram_mib = job.order.spec.memory_kib // 1024
        with self._store.building(key, ram_mib=ram_mib, on_wait=partial(_tell_wait, job)) as building:
            template = self._claimed(key, job)
            if template is not None:
                return template, False
            return self._kept(self._made(job, building, tier=tier)), True

    def discard(self, job: Job, template: Template, *, reason: str) -> None:
        """Drop a template that turned out to be of no use to a job."""
        with self._lock:
            if self._in_use.get(template.key) is not template:
                return  # another guest found out first; the key may lead to a new one
            del self._in_use[template.key]
        template.close()
        _tell_dropped(job, reason)
        self._store.discard(template.key, reason=reason)

    def close(self) -> None:
        """Let go of the templates."""
        with self._lock:
            templates = list(self._in_use.values())
            self._in_use.clear()
        for template in templates:
            template.close()

    def _claimed(self, key: str, job: Job) -> Template | None:
        with self._lock:
            if key in self._in_use:
                return self._in_use[key]
        template = self._store.claim(key, on_discard=partial(_tell_dropped, job))
        if template is None:
            return None
        made = datetime.fromisoformat(template.manifest.created).timestamp()
        if self._settings.cache == "refresh" and made < self._began:
            template.close()
            return None
        return self._kept(template)

    def _kept(self, template: Template) -> Template:
        """Keep one claim of each template; guests of the run share it."""
        with self._lock:
            kept = self._in_use.setdefault(template.key, template)
        if kept is not template:
            template.close()
        return kept

    def _made(self, job: Job, building: Building, *, tier: TemplateTier) -> Template:
        order = job.order
        spec = order.spec
        order = replace(order, place=f"{order.place}~t", hostname=spec.hostname or TEMPLATE_HOSTNAME)
        job.tell("power on")
        with job.gate.trying() as undo:
            powered = template_powered_on(self._host, order, building=building, tier=tier, stack=undo)
        with undo:
            make_ready(powered.machine, job)
            boot_seconds = job.phases.elapsed()
            job.tell("freezing")
            facts = frozen(powered, order, building=building, tier=tier, boot_seconds=boot_seconds)
        if self.key(order, tier) != building.key:
            raise SnapshotFailed(
                f"{order.name}: what the template is made of changed while it was made",
                resolution="files that prepare= names must not change during a run",
            )
        return building.publish(summary=repr(spec), versions=self._versions(), facts=facts.to_json())

    def _versions(self) -> dict[str, str]:
        facts = self._host.hypervisor.facts()
        return {
            "pytest-kvm": version("pytest-kvm"),
            "qemu": facts.hypervisor_version,
            "libvirt": facts.library_version,
        }


def _tell_wait(job: Job, holder: str) -> None:
    job.tell(f"waiting for {holder} to make the template")


def _tell_dropped(job: Job, reason: str) -> None:
    job.tell(f"its template is dropped: {reason}")
