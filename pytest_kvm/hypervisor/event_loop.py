"""libvirt's event loop: one daemon thread per process.

The event loop has to be registered before the first connection is opened
(https://libvirt.org/html/libvirt-libvirt-event.html). Without it the embedded
driver cannot talk to QEMU's monitor.
"""

from __future__ import annotations

import logging
import threading

import libvirt

_log = logging.getLogger("pytest_kvm.hypervisor")
_lock = threading.Lock()
_started: list[threading.Thread] = []


def ensure_event_loop() -> None:
    """Start the event loop, unless this process has started it already."""
    with _lock:
        if not _started:
            libvirt.registerErrorHandler(_ignore_error, None)
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


def _ignore_error(_context: object, _error: object) -> None:
    """Replace libvirt's default error handler, which prints each error to stderr.

    Nothing is lost: libvirt's Python module raises the same error as an exception.
    """
