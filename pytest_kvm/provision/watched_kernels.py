"""Collects what the kernels of a run's guests report, for the test that runs."""

from __future__ import annotations

import logging
import threading
from collections.abc import Container, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from pytest_kvm.at_once import do_at_once
from pytest_kvm.errors import HypervisorError, KvmError
from pytest_kvm.hypervisor.protocol import DomainState
from pytest_kvm.machine.kernel_reports import KernelReport

if TYPE_CHECKING:
    from pytest_kvm.handles.guest import Guest
    from pytest_kvm.handles.transcript import Transcript
    from pytest_kvm.machine.machine import Machine
    from pytest_kvm.provision.guest_machines import GuestMachines
    from pytest_kvm.spec.guest import GuestSpec

_log = logging.getLogger("pytest_kvm.kernel")


@dataclass(frozen=True, kw_only=True)
class GuestReport:
    """A report of one guest's kernel."""

    guest: str
    """The guest's name."""
    spec: GuestSpec
    report: KernelReport


@dataclass(frozen=True, kw_only=True)
class ReadyGuest:
    """A guest that is ready, or has been since it was started."""

    machine: Machine
    spec: GuestSpec
    transcript: Transcript


@dataclass(kw_only=True)
class _Watched:
    machines: GuestMachines
    spec: GuestSpec
    transcript: Transcript
    test: int
    """Number of the last test that used the guest."""
    is_used: bool = False
    """Whether somebody has used the guest since it was looked at."""


class WatchedKernels:
    """Looks at guests when it is asked to, and keeps what it finds until somebody takes it.

    No failure of a guest is raised here: what cannot be read, nobody knows.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._watched: dict[Guest, _Watched] = {}
        self._found: list[GuestReport] = []
        self._test = 0

    def watch(
        self, guest: Guest, machines: GuestMachines, *, spec: GuestSpec, transcript: Transcript
    ) -> None:
        """Look at a guest from now on, also if it still boots."""
        with self._lock:
            self._watched[guest] = _Watched(
                machines=machines, spec=spec, transcript=transcript, test=self._test
            )

    def forget(self, guest: Guest) -> None:
        """Look at a guest for the last time, because it is about to be removed."""
        with self._lock:
            watched = self._watched.pop(guest, None)
        if watched is not None:
            self._look(guest, watched)

    def close(self) -> None:
        """Look at no guest any more."""
        with self._lock:
            self._watched.clear()

    def begin_test(self) -> None:
        """Begin a test: what guests have reported since the last one ended is nobody's."""
        with self._lock:
            self._test += 1
            self._found.clear()
            watched = dict(self._watched)
        for guest, each in watched.items():
            machine = each.machines.if_ready
            if machine is not None:
                with _telling(guest):
                    machine.kernel.skip_console()

    def ready_machines(self) -> list[Machine]:
        """Return the machines of all guests that are ready."""
        with self._lock:
            machines = [each.machines.if_ready for each in self._watched.values()]
        return [machine for machine in machines if machine is not None]

    def note_use(self, guest: Guest) -> None:
        """Note that somebody uses a guest."""
        self.note_test(guest)
        watched = self._watched.get(guest)
        if watched is not None:
            watched.is_used = True

    def note_test(self, guest: Guest) -> None:
        """Note that the test has a guest.

        If the test before did not have it, what its kernel has logged meanwhile is nobody's.
        """
        watched = self._watched.get(guest)
        if watched is None:
            return
        former, watched.test = watched.test, self._test
        machine = watched.machines.if_ready
        if former < self._test - 1 and machine is not None:
            machine.kernel.skip_log()

    def look(self, guests: Sequence[Guest]) -> None:
        """Look at the guests that a test has, and at those that were used since the last look."""
        with self._lock:
            looks = [
                partial(self._look, guest, each)
                for guest, each in self._watched.items()
                if each.is_used or guest in guests
            ]
        do_at_once(looks)

    def take(self) -> list[GuestReport]:
        """Return what was found since the last call."""
        with self._lock:
            found, self._found = self._found, []
        return found

    def that_are_ready(self, guests: Container[Guest] = ()) -> list[ReadyGuest]:
        """Return those of the guests that the test has used, and of others, that have become ready."""
        wanted = [(each.machines.if_ready, each) for each in self._of_test(guests)]
        return [
            ReadyGuest(machine=machine, spec=each.spec, transcript=each.transcript)
            for machine, each in wanted
            if machine is not None
        ]

    def boot_failures(self, guests: Container[Guest] = ()) -> list[BaseException]:
        """Return why guests did not become ready that the test has used, or that are among the others."""
        failures = [each.machines.failure for each in self._of_test(guests)]
        return [failure for failure in failures if failure is not None]

    def that_can_answer(self) -> list[ReadyGuest]:
        """Return the test's guests that run and whose kernels have not panicked."""
        ready = self.that_are_ready()
        return [each for each in ready if not each.machine.kernel.has_panicked and _runs(each.machine)]

    def _of_test(self, guests: Container[Guest]) -> list[_Watched]:
        with self._lock:
            return [
                each for guest, each in self._watched.items() if each.test == self._test or guest in guests
            ]

    def _look(self, guest: Guest, watched: _Watched) -> None:
        machine = watched.machines.if_ready
        if machine is None:
            return
        watched.is_used = False
        with _telling(guest):
            reports = machine.kernel.look()
            found = [GuestReport(guest=guest.name, spec=watched.spec, report=each) for each in reports]
            with self._lock:
                self._found += found


def _runs(machine: Machine) -> bool:
    """Say whether a guest runs; if nobody knows, it may."""
    try:
        return machine.domain.state() is DomainState.RUNNING
    except HypervisorError as failure:
        _log.warning("%s: nobody knows whether it runs: %s", machine.name, failure)
        return True


@contextmanager
def _telling(guest: Guest) -> Generator[None]:
    """Log what goes wrong in a block."""
    try:
        yield
    except (KvmError, OSError) as failure:
        _log.warning("%s: what its kernel reports cannot be read: %s", guest.name, failure)
