"""Whether a domain still runs, and why it has ended, as libvirt's life-cycle events tell."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import libvirt

from pytest_kvm.host.resources import disk_free_mib

_log = logging.getLogger("pytest_kvm.hypervisor")

_STOPPED_BECAUSE = {
    libvirt.VIR_DOMAIN_EVENT_STOPPED_SHUTDOWN: "guest shutdown",
    libvirt.VIR_DOMAIN_EVENT_STOPPED_DESTROYED: "destroyed",
    libvirt.VIR_DOMAIN_EVENT_STOPPED_MIGRATED: "migrated away",
    libvirt.VIR_DOMAIN_EVENT_STOPPED_SAVED: "saved to a file",
    libvirt.VIR_DOMAIN_EVENT_STOPPED_FROM_SNAPSHOT: "reverted to a snapshot of a stopped guest",
}
_FAILURES = (libvirt.VIR_DOMAIN_EVENT_STOPPED_CRASHED, libvirt.VIR_DOMAIN_EVENT_STOPPED_FAILED)


class Lifecycle:
    """Notes the end of one domain with its reason, and tells those who wait for the end.

    Args:
        name: The domain's name.
        autopsy: Called when QEMU ended on its own; returns how it ended, for the reason.
    """

    def __init__(self, name: str, *, autopsy: Callable[[], str]) -> None:
        self.name = name
        self._autopsy = autopsy
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._settled = threading.Event()
        self._reason = ""
        self._expected = ""
        self._was_given_up = False
        self._callbacks: list[Callable[[str], None]] = []
        self._on_reset: list[Callable[[], None]] = []

    @property
    def alive(self) -> bool:
        """True until the domain's end is noted."""
        return not self._ended.is_set()

    @property
    def reason(self) -> str:
        """Why the domain ended; empty while it is alive."""
        return self._reason

    @property
    def was_given_up(self) -> bool:
        """Whether the domain has ended because :meth:`give_up` was called."""
        return self._was_given_up

    @property
    def settled(self) -> bool:
        """Whether libvirt has forgotten the domain."""
        return self._settled.is_set()

    def wait(self, timeout: float) -> bool:
        """Block until the domain has ended; return False if it has not after ``timeout`` seconds."""
        return self._ended.wait(timeout)

    def on_end(self, callback: Callable[[str], None]) -> None:
        """Call ``callback`` once with the reason of the end; at once if the domain has ended already.

        The callback runs in the thread that notes the end, and has to return
        soon: no other event is processed meanwhile.
        """
        with self._lock:
            if self.alive:
                self._callbacks.append(callback)
                return
        callback(self._reason)

    def on_reset(self, callback: Callable[[], None]) -> None:
        """Call ``callback`` whenever the machine was reset, by us or by the guest; it has to return soon.

        One reboot can be several resets: a kernel tries several ways, and QEMU counts each.
        """
        self._on_reset.append(callback)

    def note_reset(self) -> None:
        """Process libvirt's event that the machine was reset."""
        for callback in self._on_reset:
            callback()

    def expect(self, reason: str) -> None:
        """Set the reason for an end that we are about to cause; the event would only say that QEMU died."""
        self._expected = reason

    def wait_settled(self, timeout: float) -> bool:
        """Block until libvirt has forgotten the domain; return False if it has not after ``timeout`` seconds.

        If QEMU was killed without libvirt, libvirt notices at once, but may
        check again 200 ms later before it treats the domain as ended.
        """
        return self._settled.wait(timeout)

    def event(self, event: int, detail: int) -> None:
        """Process a libvirt life-cycle event (``virDomainEventType`` and its detail)."""
        if event == libvirt.VIR_DOMAIN_EVENT_CRASHED:
            self.note_end("crashed: the guest's kernel panicked")
        elif event == libvirt.VIR_DOMAIN_EVENT_STOPPED and self.alive:
            if self._expected:
                self.note_end(self._expected)
            elif detail in _FAILURES:
                self.note_end(f"QEMU died: {self._autopsy()}")
            else:
                self.note_end(_STOPPED_BECAUSE.get(detail, f"stopped (libvirt's detail {detail})"))
        if event == libvirt.VIR_DOMAIN_EVENT_STOPPED:
            self._settled.set()

    def give_up(self, reason: str) -> bool:
        """Note as the end that the domain is of no use any more; its QEMU may still be there.

        Returns:
            Whether it was noted: only the first end counts.
        """
        was_noted = self.note_end(reason)
        self._was_given_up = self._was_given_up or was_noted
        return was_noted

    def note_end(self, reason: str) -> bool:
        """Note the end, and say whether it was noted: only the first call counts."""
        with self._lock:
            if not self.alive:
                return False
            self._reason = reason
            self._ended.set()
            callbacks, self._callbacks = self._callbacks, []
        _log.debug("%s ended: %s", self.name, reason)
        for callback in callbacks:
            try:
                callback(reason)
            except Exception:  # noqa: BLE001 - a foreign callback; the other ones have to be called, too
                _log.exception("a callback for the end of %s failed", self.name)
        return True


def disk_failure(file: str, *, device: str, reason: str) -> str:
    """Return why a domain has ended that QEMU has paused because it could not use the file of a disk.

    QEMU does so when a write finds no room (``werror=enospc`` is its default), and would go on
    once somebody resumes the domain. Nobody would, and those who wait for the guest would wait until
    their time is up.

    Args:
        file: Path of the disk's file; empty if libvirt does not know it.
        device: The disk's name in QEMU.
        reason: libvirt's reason (``virConnectDomainEventIOErrorReasonCallback``).
    """
    if "enospc" in reason:
        what = "the host's disk is full"
        with suppress(OSError):  # it is in a folder that we may not enter, perhaps
            what += f", {disk_free_mib(Path(file))} MiB are free for {file}" if file else ""
    else:
        what = f"the host could not read or write {file or 'its file'}{reason and f': {reason}'}"
    return f"QEMU has stopped it at its {device}: {what}"
