"""Stands for a run in tests of what becomes of a test when something goes wrong in a guest."""

from __future__ import annotations

from types import SimpleNamespace

from pytest_kvm.handles.transcript import Transcript
from pytest_kvm.plugin import session
from pytest_kvm.provision.watched_kernels import GuestReport, ReadyGuest

_KEY = session._RUN


class Kernels:
    """Stands for a run whose kernels report what a suite provokes.

    Args:
        spec: That of the guest.
        reports: What is provoked.
        shell: Answers for the guest's gates.
        machines: The machines of the test's guests.
        boot_failures: Why further guests of the test did not become ready.
    """

    def __init__(self, spec, reports=(), *, shell=None, machines=(), boot_failures=()):
        self._spec = spec
        self._reports = reports
        self._shell = shell
        self._machines = machines
        self._boot_failures = boot_failures
        self._found = []
        self.transcript = Transcript()
        self.faults = self.captures = self.segments = self
        self.kernels = self

    def pytest_configure(self, config):
        config.provoke = self.provoke

    def pytest_sessionstart(self, session):
        session.config.stash[_KEY] = self

    def provoke(self):
        self._found = [GuestReport(guest="web", spec=self._spec, report=each) for each in self._reports]

    def begin_test(self):
        self._found = []

    def look(self, guests):
        """Find what was provoked."""

    def take(self):
        found, self._found = self._found, []
        return found

    def that_are_ready(self, guests):
        return [
            ReadyGuest(machine=machine, spec=self._spec, transcript=self.transcript)
            for machine in self._machines
        ]

    def boot_failures(self, guests):
        return self._boot_failures

    def ready_machines(self):
        return []

    def that_can_answer(self):
        kernel = SimpleNamespace(begun_at=None)
        machine = SimpleNamespace(name="web", kernel=kernel, shell=self._shell)
        return [ReadyGuest(machine=machine, spec=self._spec, transcript=self.transcript)]

    def holds(self, value):
        return False

    def at_work(self):
        return []

    all = at_work

    def record(self, segments):
        """Capture nothing."""

    def note_test(self, test):
        """Nobody looks from outside, and there is no guest."""

    def reserve(self, specs, *, peak, is_wide):
        """There is room."""

    def end_reservation(self):
        """Nothing is reserved."""

    def close(self):
        """Nothing is open."""
