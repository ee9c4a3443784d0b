"""Cold boots in turn: as many at a time as there are processors, over all processes of this user.

A boot keeps a processor busy, so more of them at a time would only make all of them
late. It is politeness and no limit: who has waited for long enough boots all the same.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from pytest_kvm.errors import WaitTimeout
from pytest_kvm.host.locks import HeldLock, try_exclusive
from pytest_kvm.host.pressure import memory_pressure
from pytest_kvm.waiting import NotYet, wait_until

if TYPE_CHECKING:
    from pytest_kvm.provision.start_request import StartRequest

_log = logging.getLogger("pytest_kvm.admission")
_EVERY = 0.2
_PRESSURE = 10.0
"""Percentage of time in which processes wait for memory. A machine with memory to spare shows 0; at a
tenth it reads back what it has dropped a moment ago, and another guest makes that worse."""
_RECOVERS_WITHIN = 60.0
"""Seconds to wait for the pressure to fall."""


class BootTurns:
    """Lets guests boot in turn.

    Args:
        folder: Of the locks, one for each boot that may be under way; all processes share it.
        number: How many may be under way.
        timeout: Seconds that a guest waits for its turn.
        pressure: Returns the percentage of time in which processes wait for memory.
    """

    def __init__(
        self,
        folder: Path,
        *,
        number: int,
        timeout: float,
        pressure: Callable[[], float] = memory_pressure,
    ) -> None:
        self._slots = [folder / f"boot-{each}" for each in range(1, number + 1)]
        self._timeout = timeout
        self._pressure = pressure

    @contextmanager
    def turn(self, request: StartRequest) -> Generator[None]:
        """Wait until it is a guest's turn to boot, and keep its turn during a block.

        A guest with cards on segments does not wait: its boot may need its neighbours,
        and theirs may need it. Templates boot without these cards.

        Raises:
            GuestGone: The guest was removed meanwhile.
        """
        if request.nics:
            yield
            return
        slot = self._take(request) or self._wait(request)
        try:
            self._wait_for_memory(request)
            yield
        finally:
            if slot is not None:
                slot.release()

    def _take(self, request: StartRequest) -> HeldLock | None:
        for path in self._slots:
            path.touch(mode=0o600)
            slot = try_exclusive(path)
            if slot is not None:
                with suppress(OSError):  # only people read it
                    path.write_text(f"{request.name} of pid {os.getpid()}", encoding="utf-8")
                return slot
        return None

    def _wait(self, request: StartRequest) -> HeldLock | None:
        def take() -> HeldLock:
            request.teardown.check()
            slot = self._take(request)
            if slot is None:
                raise NotYet(self._who_boots())
            return slot

        request.on_step(f"waiting for its turn to boot: {self._who_boots()}")
        try:
            return wait_until(take, describe="its turn to boot", timeout=self._timeout, every=_EVERY)
        except WaitTimeout as late:
            _log.warning("%s boots out of turn: %s", request.name, late.brief)
            return None

    def _who_boots(self) -> str:
        return f"{', '.join(map(_holder, self._slots))} boot{'s' if len(self._slots) == 1 else ''}"

    def _wait_for_memory(self, request: StartRequest) -> None:
        def look() -> None:
            request.teardown.check()
            pressure = self._pressure()
            if pressure >= _PRESSURE:
                raise NotYet(f"processes wait for memory {pressure:.0f} % of the time")

        try:
            look()
        except NotYet as seen:
            request.on_step(f"waiting, {_RECOVERS_WITHIN:.0f} s at most, as this machine is short: {seen}")
            with suppress(WaitTimeout):
                wait_until(look, describe="memory", timeout=_RECOVERS_WITHIN, every=_EVERY)


def _holder(slot: Path) -> str:
    with suppress(OSError, UnicodeDecodeError):
        return slot.read_text(encoding="utf-8").strip()[:100] or "another"
    return "another"
