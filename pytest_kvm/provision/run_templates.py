"""The run's templates: found in the boot cache, or made by the first guest that wants one."""

from __future__ import annotations

import hashlib
import logging
import threading
import time
from contextlib import AbstractContextManager, ExitStack
from dataclasses import replace
from datetime import datetime
from functools import partial
from importlib.metadata import version

from pytest_kvm.boot_cache.template import Building, Template
from pytest_kvm.boot_cache.template_store import TemplateStore
from pytest_kvm.errors import (
    GuestError,
    HostCommandFailed,
    HypervisorError,
    ImageError,
    NoCapacity,
    SnapshotFailed,
    StateDamaged,
)
from pytest_kvm.provision.cache_key import fingerprint, machine_facts
from pytest_kvm.provision.derived_template import (
    can_derive,
    copy_files,
    freeze_with_cards,
    start_copy,
    without_segments,
)
from pytest_kvm.provision.disk_room import COLD_BOOT_MIB, disks_mib
from pytest_kvm.provision.events import Event, cold_boot_event
from pytest_kvm.provision.prepare import PatchingRaceLost, boot_with_second_try, make_ready
from pytest_kvm.provision.run_resources import RunResources
from pytest_kvm.provision.start_request import StartRequest
from pytest_kvm.provision.template_build import (
    TEMPLATE_HOSTNAME,
    TemplateFacts,
    TemplateTier,
    freeze,
    power_on_for_template,
)
from pytest_kvm.settings import Settings

Events = tuple[Event, ...]
_log = logging.getLogger("pytest_kvm.cache")


class RunTemplates:
    """The templates that this run uses; the run claims each of them once, until its end.

    Args:
        settings: Say where the boot cache is and how it is used.
        resources: What the run has opened.
    """

    def __init__(self, settings: Settings, resources: RunResources) -> None:
        self._settings = settings
        self._resources = resources
        self._store = TemplateStore.of(settings)
        self._began = time.time()
        self._lock = threading.Lock()
        self._in_use: dict[str, Template] = {}
        self._discarded: list[Template] = []
        """Clones that run have them behind their disks, and open these again at a power-on."""

    def fingerprint(self, request: StartRequest) -> str:
        """Return the fingerprint that a request's keys are made from; reads the host files of the spec."""
        facts = machine_facts(self._resources.hypervisor.facts(), accel=self._resources.accel)
        return fingerprint(request.domain, image=request.image, machine=facts, tied_macs=request.tied_macs)

    def get(self, request: StartRequest, tier: TemplateTier, *, key: str) -> tuple[Template, Events]:
        """Return the template that a guest is cloned from, and how it was made; no events if it was found.

        Args:
            request: The machine that is asked for.
            tier: How the template holds its memory.
            key: The template's key, from :func:`key_of`.

        Raises:
            BootFailed: The machine that is booted for the template did not become ready.
            DomainFailed: QEMU cannot save the state of one of its devices.
            GuestGone: The guest was removed meanwhile.
            NoCapacity: There is no room for the template.
            SnapshotFailed: What the template is made of has changed meanwhile.
        """
        template = self._claim(key, request)
        if template is not None:
            return template, ()
        # Before there is room reserved for this one, and before its lock is held.
        base, made = self._get_base(request, tier, key=key)
        ram_mib, disk_mib = request.spec.memory_kib // 1024, COLD_BOOT_MIB
        if base is not None:
            disk_mib += disks_mib(base)
        if tier == "snapshot":  # its memory is written to its root disk
            ram_mib, disk_mib = 0, disk_mib + ram_mib
        room = self.building(request, key=key, ram_mib=ram_mib, disk_mib=disk_mib)
        with self.disk_full_as_no_capacity(), room as building:
            template = self._claim(key, request)
            if template is not None:
                return template, made
            why = "no template yet"
            if tier == "cow" and building.ram_note:
                why += f"; its RAM file is on disk: {building.ram_note}"
            if base is not None:
                template, event = self._derive_or_boot(request, building, base=base, why=why)
            else:
                template, event = self._boot(request, building, tier=tier, why=why)
            return self._keep(template), (*made, event)

    def find(self, request: StartRequest, *, key: str) -> Template | None:
        """Return the template of a key, which the run keeps until its end; None: there is none."""
        return self._claim(key, request)

    def building(
        self, request: StartRequest, *, key: str, ram_mib: int, disk_mib: int
    ) -> AbstractContextManager[Building]:
        """Hold the right to make the template of a key; see :meth:`TemplateStore.building`."""
        return self._store.building(
            key, ram_mib=ram_mib, disk_mib=disk_mib, on_wait=partial(_tell_wait, request)
        )

    def disk_full_as_no_capacity(self) -> AbstractContextManager[None]:
        """See :meth:`TemplateStore.disk_full_as_no_capacity`."""
        return self._store.disk_full_as_no_capacity()

    def publish(self, building: Building, *, summary: str, facts: TemplateFacts) -> Template:
        """Publish a template, and keep it until the run's end.

        Args:
            building: What it was made in.
            summary: What it is, for people.
            facts: What starting a clone has to know.

        Raises:
            OSError: The disk is full.
            SnapshotFailed: A file is still being written to.
        """
        versions = self._versions()
        return self._keep(building.publish(summary=summary, versions=versions, facts=facts.to_json()))

    def discard(self, request: StartRequest, template: Template, *, reason: str) -> None:
        """Drop a damaged template from the boot cache; its files stay until the run's end."""
        with self._lock:
            if self._in_use.get(template.key) is not template:
                return  # another guest has discarded it already; the key may lead to a new template
            del self._in_use[template.key]
            self._discarded.append(template)
        _tell_dropped(request, reason)
        self._store.discard(template.key, reason=reason)

    def close(self) -> None:
        """Release the templates."""
        with self._lock:
            templates = [*self._in_use.values(), *self._discarded]
            self._in_use.clear()
            self._discarded.clear()
        with ExitStack() as closing:  # one that cannot be closed keeps no other open
            for template in templates:
                closing.callback(template.close)

    def _claim(self, key: str, request: StartRequest) -> Template | None:
        with self._lock:
            if key in self._in_use:
                return self._in_use[key]
        template = self._store.claim(key, on_discard=partial(_tell_dropped, request))
        if template is None:
            return None
        made = datetime.fromisoformat(template.manifest.created).timestamp()
        if self._settings.cache == "refresh" and made < self._began:
            template.close()
            return None
        return self._keep(template)

    def _keep(self, template: Template) -> Template:
        """Keep one claim of each template, which all guests of the run share."""
        with self._lock:
            kept = self._in_use.setdefault(template.key, template)
        if kept is not template:
            template.close()
        return kept

    def _get_base(
        self, request: StartRequest, tier: TemplateTier, *, key: str
    ) -> tuple[Template | None, Events]:
        """Return the template that a request's can be derived from, and how it was made.

        Returns:
            None if the request's template has to be booted.
        """
        with self._lock:
            was_damaged = any(template.key == key for template in self._discarded)
        if was_damaged or not can_derive(request.spec, tier):
            return None, ()
        bare = without_segments(request)
        try:
            return self.get(bare, tier, key=key_of(self.fingerprint(bare), tier))
        except NoCapacity as failure:  # two templates need more room than one
            _log.warning("%s: its template is booted, and not derived: %s", request.name, failure)
            return None, ()

    def _boot(
        self, request: StartRequest, building: Building, *, tier: TemplateTier, why: str
    ) -> tuple[Template, Event]:
        def boot(why: str) -> tuple[Template, Event]:
            try:
                return self._boot_once(request, building, tier=tier, why=why)
            except PatchingRaceLost:
                building.clear()
                raise

        return boot_with_second_try(boot, name=request.name, why=why)

    def _boot_once(
        self, request: StartRequest, building: Building, *, tier: TemplateTier, why: str
    ) -> tuple[Template, Event]:
        with self._resources.boot_turns.turn(_of_template(request)):
            facts, seconds = self._boot_and_freeze(request, building, tier=tier)
        template = self._publish(request, building, facts=facts, tier=tier)
        event = cold_boot_event(request.name, spec=request.spec, seconds=seconds, why=why, for_template=True)
        return template, event

    def _boot_and_freeze(
        self, request: StartRequest, building: Building, *, tier: TemplateTier
    ) -> tuple[TemplateFacts, float]:
        """Return the template's facts, and the seconds that it has taken."""
        machine = replace(_of_template(request), phases=request.phases.of_next_boot())
        request.on_step("power on")
        with request.teardown.attempting() as undo:
            powered = power_on_for_template(
                self._resources, machine, building=building, tier=tier, stack=undo
            )
        with undo:
            make_ready(powered.machine, machine, resources=self._resources)
            boot_seconds = machine.phases.elapsed()
            request.on_step("freezing")
            facts = freeze(
                powered.machine,
                machine,
                plan=powered.plan,
                building=building,
                tier=tier,
                boot_seconds=boot_seconds,
            )
        return facts, machine.phases.elapsed()

    def _derive_or_boot(
        self, request: StartRequest, building: Building, *, base: Template, why: str
    ) -> tuple[Template, Event]:
        begun = time.monotonic()
        try:
            facts = self._derive(request, building, base=base)
        except (GuestError, HostCommandFailed, HypervisorError, ImageError) as failure:
            if isinstance(failure, StateDamaged):
                self.discard(request, base, reason=failure.brief)
            building.clear()
            why += f"; its cards could not be plugged in: {failure.brief}"
            made = self._boot(request, building, tier="cow", why=why)
            # Not before: if the guest was removed meanwhile, the boot fails, and there is nothing to warn of.
            _log.warning("%s: its template was booted, and not derived: %s", request.name, failure)
            return made
        template = self._publish(request, building, facts=facts, tier="cow")
        return template, Event(
            guest=request.name,
            kind="template",
            seconds=time.monotonic() - begun,
            why=why,
            spec=repr(request.spec),
            for_template=True,
        )

    def _derive(self, request: StartRequest, building: Building, *, base: Template) -> TemplateFacts:
        machine = _of_template(request)
        request.on_step("plugging its cards in")
        files = copy_files(request.spec, base=base, building=building)
        with request.teardown.attempting() as undo:
            copy = start_copy(self._resources, machine, base=base, files=files, stack=undo)
        with undo:
            return freeze_with_cards(copy, machine, base=base, building=building)

    def _publish(
        self, request: StartRequest, building: Building, *, facts: TemplateFacts, tier: TemplateTier
    ) -> Template:
        if key_of(self.fingerprint(request), tier) != building.key:
            raise SnapshotFailed(
                f"{request.name}: what the template is made of changed while it was made",
                resolution="files that prepare= names must not change during a run",
            )
        versions = self._versions()
        return building.publish(summary=repr(request.spec), versions=versions, facts=facts.to_json())

    def _versions(self) -> dict[str, str]:
        facts = self._resources.hypervisor.facts()
        return {
            "pytest-kvm": version("pytest-kvm"),
            "qemu": facts.hypervisor_version,
            "libvirt": facts.library_version,
        }


def key_of(fingerprint: str, tier: TemplateTier) -> str:
    """Return the key of the template that has this fingerprint and is made for this tier."""
    return fingerprint if tier == "cow" else hashlib.sha256(f"{fingerprint} {tier}".encode()).hexdigest()


def _of_template(request: StartRequest) -> StartRequest:
    """Return the request of the machine that a guest's template is made of; it is on no segment."""
    hostname = request.spec.hostname or TEMPLATE_HOSTNAME
    return replace(request, place=request.place.of_template(), hostname=hostname, nics=())


def _tell_wait(request: StartRequest, holder: str) -> None:
    request.on_step(f"waiting for its template ({holder})")


def _tell_dropped(request: StartRequest, reason: str) -> None:
    request.on_step(f"its template is dropped: {reason}")
