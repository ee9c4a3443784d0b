"""The fixtures ``kvm_guests`` and ``kvm_networks``, and the factories that they yield."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest

from pytest_kvm.plugin.declare import overridden, overrides_of
from pytest_kvm.plugin.session import run_of, start_guest

if TYPE_CHECKING:
    from pytest_kvm.handles.guest import Guest
    from pytest_kvm.handles.segment import Segment
    from pytest_kvm.provision.segments import Segments
    from pytest_kvm.spec.guest import GuestSpec
    from pytest_kvm.spec.network import NetworkSpec


class Guests:
    """Starts guests during a test; they are removed after the test."""

    def __init__(self, test: pytest.Item) -> None:
        self._test = test
        self._overrides = overrides_of(test)
        self._started: list[Guest] = []

    @property
    def started(self) -> list[Guest]:
        """The guests that were started here and are not removed yet."""
        return list(self._started)

    def start(self, spec: GuestSpec, *, name: str | None = None) -> Guest:
        """Start a guest and return its handle at once; the handle's verbs wait until the guest is ready.

        Args:
            spec: What the guest is made of.
            name: Its name in messages; also its host name, if the spec names none.
        """
        name = name or f"guest{len(self._started) + 1}"
        guest = start_guest(self._test, overridden(spec, self._overrides), name=name, resets=False)
        self._started.append(guest)
        return guest

    def boot(self, spec: GuestSpec, *, name: str | None = None) -> Guest:
        """Start a guest and wait until it is ready.

        Raises:
            BootFailed: The guest did not become ready; the subclass names the cause.
            NoCapacity: There is no room on this machine for it.
        """
        return self.boot_all(spec, names=None if name is None else [name])[0]

    def boot_all(self, *specs: GuestSpec, names: list[str] | None = None) -> list[Guest]:
        """Start guests at the same time and wait until all are ready.

        Raises:
            BootFailed: One of them did not become ready.
            NoCapacity: There is no room on this machine for all of them together.
        """
        chosen: list[str | None] = [None] * len(specs) if names is None else list(names)
        pairs = list(zip(specs, chosen, strict=True))
        with run_of(self._test.config).reserved([overridden(spec, self._overrides) for spec in specs]):
            guests = [self.start(spec, name=name) for spec, name in pairs]
        for guest in guests:
            guest.wait_ready()
        return guests

    def remove_all(self) -> None:
        """Remove every guest that was started here.

        Raises:
            CleanupFailed: Something could not be removed; everything else was.
        """
        started, self._started = self._started, []
        run_of(self._test.config).remove(*started)


@pytest.fixture
def kvm_guests(request: pytest.FixtureRequest) -> Iterator[Guests]:
    """Start guests during a test: ``boot(spec)``, ``boot_all(spec, …)``, ``start(spec)``."""
    guests = Guests(request.node)
    yield guests
    guests.remove_all()


class Networks:
    """Makes segments during a test; they are removed after the test.

    Args:
        segments: The run's segments.
    """

    def __init__(self, segments: Segments) -> None:
        self._segments = segments
        self._made: list[Segment] = []

    def make(self, spec: NetworkSpec | None = None, *, name: str | None = None) -> Segment:
        """Make a segment, which guests join with ``nics=[kvm.Nic(segment)]``.

        Args:
            spec: What the segment is made of; None: ``NetworkSpec()``.
            name: Its name in messages and in the names of its guests; None: ``net1``, ``net2`` and so on.
        """
        from pytest_kvm.spec.network import NetworkSpec  # noqa: PLC0415 - few tests make segments

        segment = self._segments.make(name or f"net{len(self._made) + 1}", spec or NetworkSpec())
        self._made.append(segment)
        return segment

    def remove_all(self) -> None:
        """Remove every segment that was made here; guests that are still on one are cut off.

        Raises:
            Exception: Whatever the function of a fault raised; all segments are removed.
            SwitchFailed: The switch has ended.
        """
        made, self._made = self._made, []
        with ExitStack() as stack:
            for segment in made:
                stack.callback(self._segments.remove, segment)


@pytest.fixture
def kvm_networks(request: pytest.FixtureRequest) -> Iterator[Networks]:
    """Make segments during a test: ``make(spec)``."""
    networks = Networks(run_of(request.config).segments)
    yield networks
    networks.remove_all()
