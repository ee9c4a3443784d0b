"""One test process's guests, from the first to the last."""

from __future__ import annotations

import re
import threading
from collections import Counter
from typing import TypeGuard

from pytest_kvm.errors import CleanupFailed
from pytest_kvm.handles.guest import Guest
from pytest_kvm.provision.birth import Birth, Progress
from pytest_kvm.provision.events import Event, Listener, ignore
from pytest_kvm.provision.host import LazyHost
from pytest_kvm.provision.keeper import Keeper
from pytest_kvm.provision.starting import Starting
from pytest_kvm.provision.state import GuestState
from pytest_kvm.settings import Settings
from pytest_kvm.spec.guest import GuestSpec

_NOT_IN_NAMES = re.compile(r"[^A-Za-z0-9_.-]+")
_LONGEST_NAME = 32
"""With a place's number behind it a socket's path is still short enough for unix(7)."""


class Run:
    """Starts guests in the background, puts them back between tests, and removes them.

    Args:
        settings: The run's settings.
        progress: Is told what every guest is at.
        keeper: Keeps what tests and fixtures do to the guests apart.
        tell: Is told how guests were started and restarted.
    """

    def __init__(
        self, settings: Settings, *, progress: Progress, keeper: Keeper, tell: Listener = ignore
    ) -> None:
        self._settings = settings
        self._progress = progress
        self._keeper = keeper
        self._tell = tell
        self._host = LazyHost(settings)
        self._starting = _LazyStarting(settings, self._host)
        self._lock = threading.Lock()
        self._births: dict[Guest, Birth] = {}
        self._places: Counter[str] = Counter()

    def start(self, spec: GuestSpec, *, name: str, resets: bool = True) -> Guest:
        """Start a guest and return its handle at once; its verbs wait for it.

        Args:
            spec: What the guest is made of.
            name: How people call it; numbered where a guest of the run has that name.
            resets: Whether it outlives a test, and is put back before the next.
        """
        with self._lock:
            name = self._unused(name)
            self._places[name] += 1
            number = self._places[name]
            birth = Birth(
                self._settings,
                self._starting,
                spec,
                name=name,
                place=name if number == 1 else f"{name}~{number}",
                resets=resets and spec.reset != "never",
                progress=self._progress,
                tell=self._tell,
            )
            guest = Guest(
                name,
                birth.machine,
                summary=repr(spec),
                before_use=lambda: self._keeper.before_use(guest),
                on_reboot=lambda seconds: self._tell(Event(guest=name, kind="reboot", seconds=seconds)),
            )
            self._births[guest] = birth
        self._keeper.watch(guest, GuestState(guest, birth, self._starting), reset=spec.reset)
        birth.begin()
        return guest

    def holds(self, value: object) -> TypeGuard[Guest]:
        """Say whether a value is a guest of this run that is not removed yet."""
        with self._lock:
            return isinstance(value, Guest) and value in self._births

    def remove(self, *guests: Guest) -> None:
        """Remove guests, however far they have come.

        Raises:
            CleanupFailed: Something could not be removed; everything else was.
        """
        failures: list[Exception] = []
        for guest in guests:
            self._keeper.forget(guest)
            with self._lock:
                birth = self._births.get(guest)
            try:
                if birth is not None:
                    birth.end()
            except Exception as error:  # noqa: BLE001 - collected, so that the rest is removed too
                failures.append(error)
            finally:
                with self._lock:
                    self._births.pop(guest, None)
        if failures:
            raise CleanupFailed("guests could not be removed cleanly", failures)

    def close(self) -> None:
        """Remove every guest, close the connection and remove the run's folder.

        Raises:
            CleanupFailed: Something could not be removed; everything else was.
        """
        with self._lock:
            left = list(self._births)
        try:
            self.remove(*left)
        finally:
            self._starting.close()
            self._host.close()

    def _unused(self, name: str) -> str:
        base = _NOT_IN_NAMES.sub("-", name).strip("-.~")[:_LONGEST_NAME] or "guest"
        taken = {guest.name for guest in self._births}
        number, unused = 1, base
        while unused in taken:
            number += 1
            unused = f"{base}-{number}"
        return unused


class _LazyStarting:
    """Makes what starts guests when the first one wants it, from any thread."""

    def __init__(self, settings: Settings, host: LazyHost) -> None:
        self._settings = settings
        self._host = host
        self._lock = threading.Lock()
        self._starting: Starting | None = None

    def get(self) -> Starting:
        """Return it.

        Raises:
            HostError: This machine cannot run guests as the settings want it.
            ConnectionFailed: The hypervisor did not open.
        """
        with self._lock:
            if self._starting is None:
                self._starting = Starting(self._settings, self._host.get())
            return self._starting

    def close(self) -> None:
        """Remove what it keeps."""
        with self._lock:
            if self._starting is not None:
                self._starting.close()
            self._starting = None
