"""Watches the calls that QEMU has to answer: libvirt waits for an answer as long as QEMU lives."""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass

from pytest_kvm.host.qemu_process import HostProcess

_LOOK_EVERY = 1.0
_STOPPED_LOOKS = 20
"""A QEMU that is stopped for so many looks is given up."""
_IDLE_LOOKS = 660
"""So is one that neither answers nor reads nor writes; writing the guest's memory may take long."""


@dataclass(eq=False)
class _Unanswered:
    """A call that QEMU has not answered yet, and what was seen at the last looks at QEMU."""

    stopped_looks: int = 0
    idle_looks: int = 0


class CallWatch:
    """Gives up a QEMU that is stopped (SIGSTOP), or hangs, while somebody waits for its answer.

    It counts looks, not seconds: a test run that was stopped itself has missed nothing.

    Args:
        process: QEMU.
        give_up: Called with the reason, in a thread; again after as many looks if the call still waits.
    """

    def __init__(self, process: HostProcess, *, give_up: Callable[[str], None]) -> None:
        self._process = process
        self._give_up = give_up
        self._lock = threading.Lock()
        self._calls: list[_Unanswered] = []
        self._is_watching = False
        self._moved: int | None = None

    @contextmanager
    def call(self) -> Generator[None]:
        """Watch QEMU while the block waits for its answer."""
        call = _Unanswered()
        with self._lock:
            if not self._is_watching:
                name = f"kvm-call-watch-{self._process.pid}"
                threading.Thread(target=self._watch, name=name, daemon=True).start()
                self._is_watching = True
            self._calls.append(call)
        try:
            yield
        finally:
            with self._lock:
                self._calls.remove(call)

    def _watch(self) -> None:
        # The thread outlives a call by one look, so that many short calls do not start as many threads.
        while not self._process.wait(_LOOK_EVERY):
            with self._lock:
                calls = self._calls.copy()
                if not calls:
                    self._is_watching = False
                    return
            self._look(calls)

    def _look(self, calls: list[_Unanswered]) -> None:
        is_stopped, before, self._moved = self._process.is_stopped, self._moved, self._process.bytes_moved
        is_idle = self._moved is not None and self._moved == before
        for call in calls:
            call.stopped_looks = call.stopped_looks + 1 if is_stopped else 0
            call.idle_looks = call.idle_looks + 1 if is_idle else 0
        if any(call.stopped_looks >= _STOPPED_LOOKS for call in calls):
            reason = f"its process was stopped (SIGSTOP) for {_STOPPED_LOOKS * _LOOK_EVERY:.0f} s"
        elif any(call.idle_looks >= _IDLE_LOOKS for call in calls):
            reason = f"it has neither read nor written for {_IDLE_LOOKS * _LOOK_EVERY:.0f} s"
        else:
            return
        for call in calls:
            call.stopped_looks = call.idle_looks = 0
        self._give_up(f"QEMU does not answer: {reason}")
