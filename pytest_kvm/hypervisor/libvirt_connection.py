"""Open a libvirt connection, explain a failure to open it, and report its loss.

libvirt's event loop has to be registered before the first connection is opened
(https://libvirt.org/html/libvirt-libvirt-event.html). Without it the embedded
driver cannot talk to QEMU's monitor. It is one daemon thread per process.
"""

from __future__ import annotations

import logging
import shlex
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

import libvirt

from pytest_kvm.errors import ConnectionFailed, KvmError, MissingDependency
from pytest_kvm.host.install_hints import ADD_QEMU_ACCOUNT, install_hint
from pytest_kvm.hypervisor.fork_guard import ProcessBound
from pytest_kvm.hypervisor.libvirt_errors import from_libvirt

_KEEPALIVE_SECONDS = 5
_KEEPALIVE_MISSES = 6


@dataclass(frozen=True, kw_only=True)
class _Cause:
    """A known reason why a connection cannot be opened, with the part of libvirt's text that tells it.

    The error code does not help: it says only "internal error".
    """

    text: str
    error: type[KvmError]
    resolution: str


_CAUSES = (
    _Cause(
        text="Failed to parse user",
        error=MissingDependency,
        resolution="as root libvirt looks up the account it would give QEMU to, though ours runs as root: "
        f"{shlex.join(ADD_QEMU_ACCOUNT)}",
    ),
    _Cause(
        text="no connection driver available for qemu",
        error=MissingDependency,
        resolution=f"libvirt's QEMU driver is not installed: {install_hint('libvirt-qemu-driver')}",
    ),
    _Cause(
        text="Resource temporarily unavailable",
        error=ConnectionFailed,
        resolution="another process works in that root folder: one root has one process",
    ),
    _Cause(
        text="already open with path",
        error=ConnectionFailed,
        resolution="one process has one root folder: start a new process for another",
    ),
    _Cause(
        text="Missing URI parameter 'root'",
        error=ConnectionFailed,
        resolution="qemu:///embed, once opened, rules out other qemu URIs: start a new process",
    ),
    _Cause(
        text="Failed to connect socket to",
        error=ConnectionFailed,
        resolution="libvirt's daemon does not run; qemu:///embed needs none",
    ),
)


def open_connection(uri: str) -> ProcessBound[libvirt.virConnect]:
    """Start the event loop and open a connection.

    Raises:
        MissingDependency: libvirt's QEMU driver or an account is missing.
        ConnectionFailed: The connection cannot be opened for another reason.
    """
    ensure_event_loop()
    try:
        return ProcessBound(libvirt.open(uri))
    except libvirt.libvirtError as failure:
        raise _explain(uri, failure) from None


def on_lost(connection: libvirt.virConnect, callback: Callable[[str], None]) -> None:
    """Call ``callback`` when a remote connection breaks; the connection of a local driver cannot break."""

    def on_close(_connection: object, reason: int, _mine: object) -> None:
        if reason != libvirt.VIR_CONNECT_CLOSE_REASON_CLIENT:
            callback("the daemon or the network went away")

    # Drivers that run inside this process support neither call.
    with suppress(libvirt.libvirtError):
        connection.setKeepAlive(_KEEPALIVE_SECONDS, _KEEPALIVE_MISSES)
        connection.registerCloseCallback(on_close, None)


def _explain(uri: str, failure: libvirt.libvirtError) -> KvmError:
    text = failure.get_error_message() or str(failure)
    for cause in _CAUSES:
        if cause.text in text:
            return cause.error(f"libvirt could not open {uri}: {text}", resolution=cause.resolution)
    return from_libvirt(failure, doing=f"open {uri}", error=ConnectionFailed)


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
