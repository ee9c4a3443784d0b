"""libvirt's event loop: one daemon thread in a process.

It has to be registered before the first connection is opened
(https://libvirt.org/html/libvirt-libvirt-event.html), and the embedded driver
needs it to talk to QEMU's monitor at all.
"""

from __future__ import annotations

import logging
import threading

import libvirt

_log = logging.getLogger("pytest_kvm.hypervisor")
_lock = threading.Lock()
_started: list[threading.Thread] = []


def ensure_event_loop() -> None:
    """Start the loop once; later calls find it running."""
    with _lock:
        if not _started:
            libvirt.registerErrorHandler(_remember_nothing, None)
            libvirt.virEventRegisterDefaultImpl()
            _started.append(threading.Thread(target=_run, name="kvm-libvirt-events", daemon=True))
            _started[0].start()


def _run() -> None:
    while True:
        try:
            libvirt.virEventRunDefaultImpl()
        except libvirt.libvirtError:
            _log.exception("libvirt's event loop failed; guests' ends may be noticed late")
            return


def _remember_nothing(_context: object, _error: object) -> None:
    """Replace libvirt's default handler, which prints each error to stderr.

    The same error reaches us as an exception.
    """
