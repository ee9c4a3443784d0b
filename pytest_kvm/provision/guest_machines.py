"""The machines of one guest: its first, those that follow resets, and one that is switched on again."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import TYPE_CHECKING

from pytest_kvm.errors import GuestError
from pytest_kvm.host.run_records import write_state
from pytest_kvm.provision.events import Tier

if TYPE_CHECKING:
    from pytest_kvm.machine.machine import Machine
    from pytest_kvm.provision.run_resources import Lazy
    from pytest_kvm.provision.start_request import StartRequest
    from pytest_kvm.provision.starter import GuestStarter, Started


class GuestMachines:
    """Knows which of a guest's machines the guest's handle leads to, and replaces it by another.

    Args:
        first: Gives the guest's first machine when it is ready.
        starter: Starts the machines that follow the first.
        lead_handle_to: Makes the handle lead to another machine.
    """

    def __init__(
        self,
        first: Future[Started],
        starter: Lazy[GuestStarter],
        *,
        lead_handle_to: Callable[[Future[Machine]], None],
    ) -> None:
        self._first = first
        self._starter = starter
        self._lead_handle_to = lead_handle_to
        self._numbers = itertools.count(2)
        self._current: Started | None = None
        self._model: Started | None = None
        """The machine that others are started like; None: the current one."""
        self._replacing = threading.Lock()

    def when_ready(self, action: Callable[[], None]) -> None:
        """Have something done as soon as the guest has become ready, before anybody uses it."""

        def act(first: Future[Started]) -> None:
            if not first.cancelled() and first.exception() is None:
                action()

        self._first.add_done_callback(act)

    @property
    def current(self) -> Started:
        """The machine that the handle leads to; waits until the guest is ready."""
        if self._current is None:
            self._current = self._first.result()
        return self._current

    @property
    def if_ready(self) -> Machine | None:
        """The machine that the handle leads to; None while the guest boots, or if its boot failed."""
        is_over = self._first.done() and not self._first.cancelled()
        is_ready = self._current is not None or (is_over and self._first.exception() is None)
        return self.current.machine if is_ready else None

    @property
    def failure(self) -> BaseException | None:
        """Why the guest did not become ready; None while it boots, and if it did."""
        is_over = self._first.done() and not self._first.cancelled()
        return self._first.exception() if is_over else None

    def start_another(self) -> Tier:
        """Start a machine like the first one and remove the current one; return how it was started."""
        with self._replacing, self.current.request.room.doubled() as has_room_for_both:
            former, starter = self.current, self._starter.get()
            model = self._model or former
            if not (has_room_for_both and starter.has_room_like(model)):
                former.undo.close()
            fresh = starter.start_like(model, self.successor())
            self._model = fresh
            self._lead_to(fresh)
            former.undo.close()
        return fresh.events[-1].tier or "cold"

    def successor(self) -> StartRequest:
        """Return the request of a machine that is to take the place of the current one."""
        return self.current.request.successor(next(self._numbers))

    def replace_current(self, fresh: Started) -> Started:
        """Have the guest's handle lead to another machine, not like the first; return the former one."""
        with self._replacing:
            former = self.current
            self._model = self._model or former
            self._lead_to(fresh)
            return former

    def start_again(self) -> Machine:
        """Start the current machine, which has ended, in a new QEMU; return it paused, before its first step.

        Raises:
            GuestError: It runs.
            GuestGone: The guest was removed.
            HypervisorError: libvirt refused the domain; the machine stays off.
            NoCapacity: The run folder's disk is full.
            SwitchFailed: The switch has ended.
        """
        with self._replacing:
            former = self.current
            if former.machine.domain.alive():
                raise GuestError(
                    f"{former.machine.name} is on already",
                    resolution="reboot() restarts it; shutdown() or power_off() switches it off",
                )
            fresh = self._starter.get().start_again(former)
            self._lead_to(fresh)
            return fresh.machine

    def _lead_to(self, started: Started) -> None:
        self._current = started
        write_state(started.machine.folder, "running")
        machine: Future[Machine] = Future()
        machine.set_result(started.machine)
        self._lead_handle_to(machine)
