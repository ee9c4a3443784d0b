"""Starting one guest in a thread of its own, and removing it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Generator
from concurrent.futures import Future
from contextlib import contextmanager
from typing import Protocol

from pytest_kvm.errors import BootFailed
from pytest_kvm.handles.segment import GuestNic
from pytest_kvm.host.run_records import write_state
from pytest_kvm.images.ensure import ensure
from pytest_kvm.images.image import Image
from pytest_kvm.machine.boot import Phases
from pytest_kvm.machine.machine import Machine
from pytest_kvm.plaintext import guest_log
from pytest_kvm.provision.events import Event, EventListener
from pytest_kvm.provision.room import Room
from pytest_kvm.provision.run_resources import Lazy
from pytest_kvm.provision.start_request import Place, StartRequest, Teardown
from pytest_kvm.provision.starter import GuestStarter, Started
from pytest_kvm.settings import Settings
from pytest_kvm.spec.guest import GuestSpec
from pytest_kvm.spec.image import ImageRef
from pytest_kvm.spec.neighbours import hostname_from

_WORDS = {
    "console": "the kernel speaks",
    "banner": "sshd answers",
    "login": "logged in, cloud-init at work",
    "cloud_init": "cloud-init has finished",
}
"""How progress shows each rung of the readiness ladder; a rung that is missing here is a unit's name."""


class BootProgress(Protocol):
    """Is told how far long work has come."""

    def phase(self, subject: str, phase: str) -> None:
        """Say that ``subject`` has entered ``phase``."""
        ...

    def finished(self, subject: str, outcome: str) -> None:
        """Say that ``subject`` is done and how it ended."""
        ...


class GuestBoot:
    """Starts one guest in the background.

    Args:
        settings: The run's settings.
        starter: Starts machines; opened when the run's first guest is started.
        spec: What the guest is made of.
        place: Where its files go.
        room: What it has of this host, under its name; waited for if it is not granted yet.
        resets: Whether the guest is reset between tests.
        progress: Is told what the guest is doing.
        tell: Gets the events of its start: image built, machine started, boot failed.
    """

    def __init__(
        self,
        settings: Settings,
        starter: Lazy[GuestStarter],
        spec: GuestSpec,
        *,
        place: Place,
        room: Room,
        resets: bool,
        progress: BootProgress,
        tell: EventListener,
    ) -> None:
        self.started: Future[Started] = Future()
        self.machine: Future[Machine] = Future()
        self.teardown = Teardown(room.name)
        self._settings = settings
        self._starter = starter
        self._spec = spec
        self._name = room.name
        self._place = place
        self._room = room
        self._resets = resets
        self._progress = progress
        self._tell = tell
        self._nics: tuple[GuestNic, ...] = ()
        self._host_lines: Callable[[], list[str]] = list
        self._log = guest_log(room.name)
        # A daemon thread, so that the process can end while an image is being
        # built; the host programs that build the image are killed with it.
        self._thread = threading.Thread(target=self._run, name=f"pytest-kvm-{room.name}", daemon=True)

    def start(self, nics: tuple[GuestNic, ...] = (), host_lines: Callable[[], list[str]] = list) -> None:
        """Start the thread.

        Args:
            nics: The guest's cards on segments.
            host_lines: Returns the lines of hosts(5) that name the guests on the same segments.
        """
        self._nics, self._host_lines = nics, host_lines
        self._room.take_reserved()
        self._thread.start()

    def remove(self) -> None:
        """Remove the guest, also while it is being started.

        A wait for room ends, and a boot in progress, because its domain is destroyed. An image that is
        being built for the guest is finished, because other guests may wait for it.
        """
        try:
            self.teardown.close()
        finally:
            self._room.release()

    def _run(self) -> None:
        begun = time.monotonic()
        try:
            started = self._start()
        except BaseException as error:  # noqa: BLE001 - raised where a caller waits for the machine
            with self._telling():
                self._tell_of_failure(error, seconds=time.monotonic() - begun)
            self._room.leave()
            self.started.set_exception(error)
            self.machine.set_exception(error)
            self.remove()
        else:
            with self._telling():
                self._progress.finished(self._name, f"ready after {started.seconds:.1f} s")
            self.started.set_result(started)
            self.machine.set_result(started.machine)

    def _tell_of_failure(self, error: BaseException, *, seconds: float) -> None:
        why, spec = type(error).__name__, repr(self._spec)
        if isinstance(error, BootFailed):
            self._tell(Event(guest=self._name, kind="failure", seconds=seconds, why=why, spec=spec))
        self._progress.finished(self._name, f"failed: {why}")

    @contextmanager
    def _telling(self) -> Generator[None]:
        """Log what a listener raises, so that callers who wait for the guest get its result all the same."""
        try:
            yield
        except BaseException:  # noqa: BLE001 - see the docstring
            self._log.exception("%s: its end could not be told", self._name)

    def _start(self) -> Started:
        self._room.wait(self._on_step)
        self._starter.get()  # a host that runs no guests need not build an image
        image, packages_left = self._image()
        starter = self._starter.get()  # the run may have ended meanwhile
        request = StartRequest(
            spec=self._spec,
            name=self._name,
            place=self._place,
            hostname=self._spec.hostname or hostname_from(self._name),
            image=image,
            domain=starter.draft(self._spec, image),
            packages_left=packages_left,
            resets=self._resets,
            nics=self._nics,
            tied_macs={nic.index: nic.mac for nic in self._nics if self._spec.nics[nic.index].is_tied_to_mac},
            host_lines=self._host_lines,
            log=self._log,
            phases=Phases(self._log, listener=self._on_phase),
            on_step=self._on_step,
            room=self._room,
            teardown=self.teardown,
        )
        started = starter.start(request)
        write_state(started.machine.folder, "running")
        for event in started.events:
            self._tell(event)
        return started

    def _on_phase(self, phase: str, _seconds: float) -> None:
        if phase != "ready":  # progress shows it as the outcome, with the time it took
            self._progress.phase(self._name, _WORDS.get(phase, f"{phase} is active"))

    def _on_step(self, step: str) -> None:
        self._progress.phase(self._name, step)

    def _image(self) -> tuple[Image, tuple[str, ...]]:
        """Return the image to start from and the packages that are not in it."""
        packages = tuple(self._spec.packages)
        image = ensure(
            self._spec.image_ref or ImageRef.parse(self._settings.default_image),
            settings=self._settings,
            packages=packages,
            progress=lambda phase, _done=None: self._progress.phase(self._name, phase),
            on_built=lambda what, seconds: self._tell(
                Event(guest=self._name, kind="image", seconds=seconds, why=what)
            ),
        )
        return image, () if image.built_from_packages else packages
