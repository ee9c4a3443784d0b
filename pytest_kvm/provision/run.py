"""The run: starts, holds and removes the guests of one pytest process."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from functools import partial
from typing import TypeGuard

from pytest_kvm.errors import CleanupFailed, GuestGone, SpecError
from pytest_kvm.handles.callbacks import Callbacks, untold
from pytest_kvm.handles.guest import Guest, replace_machine
from pytest_kvm.host.limits import limits_of
from pytest_kvm.host.register import Register
from pytest_kvm.host.run_records import write_test
from pytest_kvm.host.run_token import new_run_token
from pytest_kvm.provision.admission import Admission
from pytest_kvm.provision.admission_rules import Amount
from pytest_kvm.provision.disk_room import run_disk_full_in_words
from pytest_kvm.provision.events import Event, EventListener, ignore
from pytest_kvm.provision.guest_boot import BootProgress, GuestBoot
from pytest_kvm.provision.guest_links import GuestLinks
from pytest_kvm.provision.guest_machines import GuestMachines
from pytest_kvm.provision.guest_state import GuestState
from pytest_kvm.provision.lab_forming import Forming, check_left
from pytest_kvm.provision.reset_coordinator import ResetCoordinator
from pytest_kvm.provision.run_resources import Lazy, RunResources, open_run_resources, qemu_overhead_mib
from pytest_kvm.provision.segment_captures import SegmentCaptures
from pytest_kvm.provision.segment_faults import SegmentFaults
from pytest_kvm.provision.segments import Segments
from pytest_kvm.provision.start_request import Place, clean_name
from pytest_kvm.provision.starter import GuestStarter
from pytest_kvm.provision.watched_kernels import WatchedKernels
from pytest_kvm.settings import Settings
from pytest_kvm.spec.guest import GuestSpec
from pytest_kvm.switch.client import Switch


class Run:
    """Starts guests in the background, has them reset between tests, and removes them.

    Args:
        settings: The run's settings.
        progress: Is told what each guest is doing.
        coordinator: Resets the guests between tests.
        tell: Gets an event for each guest that was started or rebooted.
        about: What ``pytest-kvm ps`` tells of the run.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        progress: BootProgress,
        coordinator: ResetCoordinator,
        tell: EventListener = ignore,
        about: Mapping[str, str] | None = None,
    ) -> None:
        self._settings = settings
        self._progress = progress
        self._coordinator = coordinator
        self._tell = tell
        self._token = new_run_token()
        self._admission = Admission(
            Register(settings.limits_folder),
            limits_of(settings),
            timeout=lambda: self._resources.get().timeouts.admission,
            overhead=lambda: qemu_overhead_mib(self._resources.get_open()),
        )
        self._switch = Lazy(lambda: closing(Switch(self._token)))
        self._resources = Lazy(self._open_resources)
        self._about = about or {}
        self._test = ""
        self.kernels = WatchedKernels()
        self.faults = SegmentFaults(coordinator, seed=settings.seed)
        self.captures = SegmentCaptures(self._resources, coordinator, records=settings.capture != "never")
        self.segments = Segments(
            self._switch,
            self._resources,
            faults=self.faults,
            captures=self.captures,
            before_removal=self._drop_spares,
        )
        self._starter = Lazy(lambda: closing(GuestStarter(settings, self._resources.get())))
        self._lock = threading.Lock()
        self._boots: dict[Guest, GuestBoot] = {}
        self._machines: dict[Guest, GuestMachines] = {}
        self._places: Counter[str] = Counter()

    def start(
        self,
        spec: GuestSpec,
        *,
        name: str,
        resets: bool = True,
        on_booted: Callable[[Guest, BaseException | None], None] = untold,
    ) -> Guest:
        """Start a guest and return its handle; its verbs wait for it.

        This waits only if guests on its segments have to be put back first.

        Args:
            spec: What the guest is made of.
            name: The guest's name; a number is added if another guest of the run has that name.
            resets: Whether the guest outlives a test, and is reset before the next test uses it.
            on_booted: Called each time that a caller waits for the guest, with the guest and its
                boot's error (None: it is ready).

        Raises:
            SpecError: Another guest on a segment has an address or a name of this guest.
            SwitchFailed: The switch has ended.
        """
        guest, boot, machines = self._join(spec, name, resets=resets, on_booted=on_booted)
        try:
            if guest.nics:  # its boot needs its neighbours, and may change them
                self._coordinator.before_use(guest)
            if resets:
                links = GuestLinks(guest.nics)
                self._coordinator.watch(guest, GuestState(machines, links=links), reset=spec.reset)
            boot.start(guest.nics, host_lines=partial(self.segments.host_lines, guest.nics))
        except BaseException:
            self.remove(guest)
            raise
        return guest

    def _join(
        self,
        spec: GuestSpec,
        name: str,
        *,
        resets: bool,
        on_booted: Callable[[Guest, BaseException | None], None],
    ) -> tuple[Guest, GuestBoot, GuestMachines]:
        """Make a guest's handle, under a name that is free, and give it its cards on segments."""
        with self._lock:
            declared_name = clean_name(name)
            name = self._unused_name(declared_name)
            self._places[name] += 1
            number = self._places[name]
            boot = GuestBoot(
                self._settings,
                self._starter,
                spec,
                place=Place(name if number == 1 else f"{name}~{number}"),
                room=self._admission.room(name, Amount.of(spec), is_wide=resets),
                resets=resets and spec.reset != "never",
                progress=self._progress,
                tell=self._tell,
            )
            machines = GuestMachines(
                boot.started,
                self._starter,
                lead_handle_to=lambda machine: replace_machine(guest, machine),
            )
            callbacks = Callbacks(
                on_booted=on_booted,
                before_use=self._before_use,
                start_again=machines.start_again,
                on_reboot=lambda seconds: self._tell(Event(guest=name, kind="reboot", seconds=seconds)),
            )
            guest = Guest(name, boot.machine, summary=repr(spec), callbacks=callbacks)
            guest.nics = self.segments.join(guest, spec, declared_name=declared_name)
            self._boots[guest] = boot
            self._machines[guest] = machines
            self.kernels.watch(guest, machines, spec=spec, transcript=callbacks.transcript)
        return guest, boot, machines

    def form(
        self,
        guests: Sequence[Guest],
        *,
        name: str,
        function: Callable[[], None],
        digest: Callable[[], str],
    ) -> None:
        """Have a lab of guests formed by a function, or start them as they were when it was formed before.

        Args:
            guests: The guests, which may still boot; waited for.
            name: The name of the lab's fixture.
            function: Forms the lab.
            digest: Returns a digest of what the function depends on, besides the guests.

        Raises:
            GuestGone: A guest was removed.
            SpecError: The function has left something that a later run would not have, or ``digest``
                raises it.
            Exception: Whatever the function raises.
        """
        forming = Forming(
            name=name,
            function=partial(self._form_and_check, guests, name, function),
            digest=digest(),
            digest_again=digest,
            on_step=partial(self._progress.phase, name),
        )
        try:
            forming.on_step("waiting for its guests")
            for guest in guests:
                guest.wait_ready()
            begun = time.monotonic()
            why = self._form_or_start(guests, forming)
        except BaseException as failure:
            self._progress.finished(name, f"failed: {type(failure).__name__}")
            raise
        seconds = time.monotonic() - begun
        self._tell(Event(guest=name, kind="forming" if why else "lab", seconds=seconds, why=why))
        self._progress.finished(name, f"ready after {seconds:.1f} s")

    def _form_or_start(self, guests: Sequence[Guest], forming: Forming) -> str:
        """Return why the lab had to be formed; "" if its guests were started from a template."""
        for guest in guests:
            self._coordinator.before_use(guest)
        labs, lab = self._starter.get().labs, [self._machines_of(guest) for guest in guests]
        changes = filter(None, map(self._coordinator.why_not_new, guests))
        why = next(changes, "") or labs.why_none(lab)
        if not why:
            return labs.start(lab, forming)
        forming.form()
        return why

    def _form_and_check(self, guests: Sequence[Guest], name: str, function: Callable[[], None]) -> None:
        segments = dict.fromkeys(nic.segment for guest in guests for nic in guest.nics)
        before = [fault for segment in segments for fault in self.faults.active(segment)]
        function()
        for guest in guests:
            check_left(name, self._machines_of(guest).current.machine)
        faults = [fault for segment in segments for fault in self.faults.active(segment)]
        if left := [repr(fault) for fault in faults if fault not in before]:
            raise SpecError(
                f"the lab template {name} has left faults: {', '.join(left)}",
                resolution="set them in another fixture: a later run would not have them",
            )

    def _machines_of(self, guest: Guest) -> GuestMachines:
        with self._lock:
            machines = self._machines.get(guest)
        if machines is None:
            raise GuestGone(f"{guest.name} was removed")
        return machines

    def reserve(self, specs: Sequence[GuestSpec | None], *, peak: Amount, is_wide: bool) -> None:
        """Wait for room on this host for guests that are about to be started, for all together.

        Args:
            specs: What they are made of; None if that is not known yet.
            peak: The most that the run's guests will take at a time, as far as it is known.
            is_wide: Whether one of them outlives the test.

        Raises:
            NoCapacity: There is never room for all of them, or there was none in time.
        """
        with self._telling_of_wait() as tell:
            self._admission.reserve(
                [None if spec is None else Amount.of(spec) for spec in specs],
                peak=peak,
                is_wide=is_wide,
                tell=tell,
            )

    def end_reservation(self) -> None:
        """Give back the room that was reserved and that no guest has taken."""
        self._admission.end_reservation()

    @contextmanager
    def reserved(self, specs: Sequence[GuestSpec]) -> Generator[None]:
        """Reserve room for the guests that are started in a block; see :meth:`reserve`."""
        with ExitStack() as stack:
            with self._telling_of_wait() as tell:
                stack.enter_context(self._admission.reserved([Amount.of(spec) for spec in specs], tell=tell))
            yield

    @contextmanager
    def _telling_of_wait(self) -> Generator[Callable[[str], None]]:
        """Yield what is told of a wait for room, and tell of its end."""
        subject = self._test.rpartition("::")[2] or "guests"
        begun, told = time.monotonic(), ""

        def tell(what: str) -> None:
            nonlocal told
            told = what
            self._progress.phase(subject, what)
            self._write_test(waits_for=what)

        try:
            yield tell
        finally:
            if told:
                seconds = time.monotonic() - begun
                self._tell(Event(guest=subject, kind="wait", seconds=seconds, why=told))
                self._progress.finished(subject, f"waited {seconds:.1f} s for room")
                self._write_test()

    def holds(self, value: object) -> TypeGuard[Guest]:
        """Say whether a value is a guest of this run that has not been removed."""
        with self._lock:
            return isinstance(value, Guest) and value in self._boots

    def remove(self, *guests: Guest) -> None:
        """Remove guests, also those that still boot.

        Raises:
            CleanupFailed: Something could not be removed; everything else was.
        """
        failures: list[Exception] = []
        for guest in guests:
            self._coordinator.forget(guest)
            with self._lock:
                boot = self._boots.get(guest)
            self.kernels.forget(guest)
            try:
                if boot is not None:
                    boot.remove()
            except Exception as error:  # noqa: BLE001 - collected, so that the rest is removed too
                failures.append(error)
            finally:
                with self._lock:
                    self._boots.pop(guest, None)
                    self._machines.pop(guest, None)
                self.segments.leave(guest.nics)
        if failures:
            raise CleanupFailed("guests could not be removed cleanly", failures)

    def close(self) -> None:
        """Remove every guest, close the connection and remove the run's folder.

        Raises:
            CleanupFailed: Something could not be removed; everything else was.
        """
        with self._lock:
            left = list(self._boots)
        self.kernels.close()
        try:
            self.remove(*left)
        finally:
            self._starter.close()
            self._switch.close()
            self._resources.close()
            self._admission.close()

    def note_test(self, test: str) -> None:
        """Note for those who look from outside which test has begun; "" when it has ended."""
        self._test = test
        self._admission.note_test(test)
        self._write_test()

    def _write_test(self, *, waits_for: str = "") -> None:
        resources = self._resources.get_open()
        if resources is not None:
            write_test(resources.folder, self._test, waits_for=waits_for)

    @contextmanager
    def _open_resources(self) -> Generator[RunResources]:
        opened = open_run_resources(
            self._settings, self._switch, admission=self._admission, token=self._token, about=self._about
        )
        with ExitStack() as stack:
            with run_disk_full_in_words(self._settings.run_dir, "no room for a run"):
                resources = stack.enter_context(opened)
            write_test(resources.folder, self._test)
            yield resources

    def _drop_spares(self, network: str) -> None:
        with suppress(GuestGone):  # the run has ended, and its spare clones with it
            self._starter.get().drop_spares(network)

    def _before_use(self, guest: Guest) -> None:
        self._coordinator.before_use(guest)
        self.kernels.note_use(guest)
        if guest.nics:
            self.segments.tell_names(guest)

    def _unused_name(self, base: str) -> str:
        taken = {guest.name for guest in self._boots}
        number, unused = 1, base
        while unused in taken:
            number += 1
            unused = f"{base}-{number}"
        return unused
