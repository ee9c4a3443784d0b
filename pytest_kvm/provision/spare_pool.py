"""Spare clones: started, renewed and paused ahead of need, so that the next start only resumes one."""

from __future__ import annotations

import itertools
import logging
import threading
from collections import Counter, deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple

from pytest_kvm.boot_cache.template import Template
from pytest_kvm.errors import GuestGone, KvmError, NoCapacity, WaitTimeout
from pytest_kvm.host.resources import memory_available_mib
from pytest_kvm.provision.admission import Admission
from pytest_kvm.provision.clone import Clone
from pytest_kvm.provision.room import Room
from pytest_kvm.provision.start_request import StartRequest, Teardown

_log = logging.getLogger("pytest_kvm.pool")
_MEMORY_LEFT = 2
"""A spare clone is made if so many times its memory is free, unless the user says how many to keep."""
_STARTS_BEFORE = 2
"""Starts of a guest after which it gets a spare clone."""
_MOST = 4
"""Spare clones of all guests together, unless the user says how many to keep."""
_LOOK_EVERY = 0.5
"""Seconds after which another process that waits for room is noticed."""
_PATIENCE = 10.0
"""Seconds to wait for a clone that is being prepared."""


class _NoRoom(NoCapacity):
    pass


MakeClone = Callable[[StartRequest, Template], tuple[Clone, ExitStack]]


@dataclass(kw_only=True)
class Spare:
    """A paused clone, either fresh from its template or prepared: renewed, with a login."""

    clone: Clone
    undo: ExitStack
    """Removes the clone."""
    room: Room
    """What it has of this host until it is taken: who takes it has room of its own."""
    on_taken: Callable[[], None]
    """Has the pool forget it."""
    busy: threading.Lock = field(default_factory=threading.Lock)
    """Held while the clone is prepared."""
    taken: bool = False

    def prepare(self) -> None:
        """Wake and renew the clone, log in and pause it, unless it was taken already."""
        with self.busy:
            if self.taken:
                return
            self.clone = self.clone.wake()
            # The SSH connection survives the pause.
            self.clone.machine.shell.connect()
            self.clone.machine.domain.suspend()

    def remove(self) -> None:
        """Remove the clone, which was not taken."""
        self.taken = True
        self.undo.close()

    def take(self) -> Clone:
        """Return the clone, which belongs to the caller from now on.

        Raises:
            WaitTimeout: It was not prepared in time; starting another clone is faster.
        """
        if not self.busy.acquire(timeout=_PATIENCE):
            raise WaitTimeout(f"{self.clone.machine.name}: not prepared within {_PATIENCE:.0f} s")
        try:
            self.taken = True
            self.room.release()
            self.on_taken()
            return self.clone
        finally:
            self.busy.release()


class _Slot(NamedTuple):
    """Which guests a spare clone fits: those with this template, these names and these cards on segments."""

    template: str
    own_facts: tuple[object, ...]
    """See :attr:`StartRequest.own_facts`."""
    networks: tuple[str | None, ...]
    """The libvirt networks that its cards are on, where they stay; None: on a port of the switch."""


class SparePool:
    """Makes spare clones in the background.

    Args:
        make_clone: Starts a clone.
        size: Spare clones to keep for each guest; None: one, while there is memory for it.
        admission: Has room for spare clones while no guest needs it.
    """

    def __init__(self, make_clone: MakeClone, *, size: int | None, admission: Admission) -> None:
        self._make_clone = make_clone
        self._size = size
        self._admission = admission
        admission.on_shortage(self.give_way)
        self._is_looking = False
        self._end = threading.Event()
        self._lock = threading.Lock()
        self._slots: dict[_Slot, deque[Future[Spare]]] = {}
        self._starts: Counter[_Slot] = Counter()
        self._numbers = itertools.count(1)
        self._teardowns: set[Teardown] = set()
        self._closed = False
        # One worker, so that a processor is left for the test that runs meanwhile.
        self._worker = ThreadPoolExecutor(max_workers=1, thread_name_prefix="pytest-kvm-pool")

    def take(self, request: StartRequest, template: Template) -> Spare | None:
        """Return a spare clone for a request; None if there is none, or starting a clone is faster.

        A spare clone that is being made is waited for. One that has not been begun is cancelled.
        """
        with self._lock:
            waiting = self._slots.get(_slot(request, template))
            future = waiting.popleft() if waiting and not self._closed else None
        if future is None or future.cancel():
            return None
        try:
            return future.result(timeout=_PATIENCE)
        except TimeoutError:
            future.add_done_callback(_remove)
        except Exception as failure:  # noqa: BLE001 - no failure of a spare clone may fail a start
            _log.debug("%s: no spare clone: %s", request.name, failure)
        return None

    def note_start(self, request: StartRequest, template: Template) -> None:
        """Count a start, and queue spare clones for the guest's next starts; returns at once.

        Unless the user says how many spare clones to keep, a guest gets one after
        its second start, because most guests are started only once.
        """
        slot = _slot(request, template)
        with self._lock:
            self._starts[slot] += 1
            if self._closed or (self._size is None and self._starts[slot] < _STARTS_BEFORE):
                return
            waiting = self._slots[slot] = self._slots.pop(slot, deque())  # the latest used is the last
            self._make_room(slot)
            try:
                while len(waiting) < self._number_wanted(request):
                    waiting.append(self._worker.submit(self._make_spare, request, template))
            except RuntimeError as failure:  # no thread can be started
                self._note(f"{request.name}: no spare clone could be started: {failure}")

    def drop(self, network: str) -> None:
        """Remove the spare clones on a libvirt network, which is about to be removed."""
        self._drop_if(lambda slot: network in slot.networks)

    def give_way(self) -> bool:
        """Remove all spare clones, as a guest needs their room; return whether there were any."""
        return self._drop_if(lambda _slot: True)

    def close(self) -> None:
        """Remove all spare clones that were not taken."""
        self._end.set()
        with self._lock:
            self._closed = True
            teardowns, self._teardowns = self._teardowns, set()
        for teardown in teardowns:
            teardown.close()  # ends preparations that are under way, too
        self._worker.shutdown(cancel_futures=True)

    def _drop_if(self, is_meant: Callable[[_Slot], bool]) -> bool:
        """Remove the spare clones of some slots; return whether there were any."""
        with self._lock:
            slots = [slot for slot in self._slots if is_meant(slot)]
            futures = [future for slot in slots for future in self._slots.pop(slot)]
        for future in futures:
            if not future.cancel():
                future.add_done_callback(_remove)
        return bool(futures)

    def _make_room(self, slot: _Slot) -> None:
        """If the pool is full, give up a spare clone of the guest whose last start is longest ago."""
        spare = sum(len(futures) for futures in self._slots.values())
        if self._size is not None or spare < _MOST:
            return
        oldest = next((each for each, futures in self._slots.items() if futures and each != slot), None)
        if oldest is not None:
            future = self._slots[oldest].popleft()
            if not future.cancel():
                self._worker.submit(_remove, future)

    def _number_wanted(self, request: StartRequest) -> int:
        if self._size is not None:
            return self._size
        return 1 if memory_available_mib() * 1024 > _MEMORY_LEFT * request.spec.memory_kib else 0

    def _make_spare(self, request: StartRequest, template: Template) -> Spare:
        """Make a clone, and queue its preparation."""
        teardown, number = Teardown(request.name), next(self._numbers)
        with self._lock:
            if self._closed:
                raise GuestGone(f"{request.name}: nobody would remove its clone any more")
            self._teardowns.add(teardown)
        undo = ExitStack()
        undo.callback(self._forget, teardown)
        undo.callback(teardown.close)  # however many threads remove the clone, its steps are undone in order
        try:
            room = self._free_room(request, teardown)
            clone, _ = self._make_clone(request.spare(number, room=room, teardown=teardown), template)
        except BaseException as failure:
            undo.close()
            if not isinstance(failure, _NoRoom):
                self._note(f"{request.name}: no spare clone could be started: {failure}")
            raise
        on_taken = partial(self._forget, teardown)
        spare = Spare(clone=clone, undo=undo, room=room, on_taken=on_taken)
        self._worker.submit(self._prepare, spare, request.name)
        self._look_out()
        return spare

    def _free_room(self, request: StartRequest, teardown: Teardown) -> Room:
        """Take room for a spare clone, which is given back after all else of the teardown."""
        room = self._admission.room_if_free(request.name, request.room.amount)
        if room is None:
            raise _NoRoom(f"{request.name}: no room for a spare clone")
        try:
            with teardown.adding() as stack:
                stack.callback(room.release)
        except GuestGone:
            room.release()
            raise
        return room

    def _look_out(self) -> None:
        """See to it that spare clones give way to guests of other processes, too."""
        with self._lock:
            if not self._is_looking:
                self._is_looking = True
                thread = threading.Thread(target=self._give_way_to_others, daemon=True)
                thread.start()

    def _give_way_to_others(self) -> None:
        while not self._end.wait(_LOOK_EVERY):
            with self._lock:
                if not any(self._slots.values()):
                    self._is_looking = False
                    return
            try:
                if self._admission.others_wait():
                    self.give_way()
            except KvmError as failure:
                _log.warning("it could not be seen whether others wait for room: %s", failure)
                with self._lock:
                    self._is_looking = False  # until there is the next spare clone
                return

    def _prepare(self, spare: Spare, name: str) -> None:
        try:
            spare.prepare()
        except BaseException as failure:  # noqa: BLE001 - a start that takes it fails to wake it, and starts another
            if not spare.taken:
                self._note(f"{name}: a clone could not be prepared: {failure}")
            spare.undo.close()

    def _forget(self, teardown: Teardown) -> None:
        with self._lock:
            self._teardowns.discard(teardown)

    def _note(self, what: str) -> None:
        if not self._closed:  # closing the pool makes preparations fail: no reason to warn
            _log.warning(what)


def _remove(future: Future[Spare]) -> None:
    if not future.cancelled() and future.exception() is None:
        future.result().remove()


def _slot(request: StartRequest, template: Template) -> _Slot:
    return _Slot(template.key, request.own_facts, tuple(nic.segment.backend.network for nic in request.nics))
