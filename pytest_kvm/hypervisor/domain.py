"""One libvirt domain: its state and end, power, keys, screen, monitor, guest agent and snapshots."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, BinaryIO

import libvirt

from pytest_kvm.errors import DomainFailed, HypervisorError, KvmError, StateDamaged
from pytest_kvm.host.qemu_process import HostProcess
from pytest_kvm.hypervisor import device_state, monitor, qemu_log
from pytest_kvm.hypervisor.call_watch import CallWatch
from pytest_kvm.hypervisor.fork_guard import ProcessBound
from pytest_kvm.hypervisor.libvirt_errors import translated
from pytest_kvm.hypervisor.lifecycle import Lifecycle
from pytest_kvm.hypervisor.protocol import CardFrames, DomainState
from pytest_kvm.hypervisor.snapshots import Snapshots, save_libvirt_snapshot
from pytest_kvm.hypervisor.steal_time import GuestClock

_log = logging.getLogger("pytest_kvm.hypervisor")
_KILLED_WITHIN = 10.0
_ENDS_WITHIN = 10.0
_MOST_SCREEN_BYTES = 64 * 1024 * 1024
"""Five times a 24 bit picture of 2560 by 1600. There is a limit because the guest chooses the size."""
_GONE = (libvirt.VIR_ERR_NO_DOMAIN, libvirt.VIR_ERR_OPERATION_INVALID)

_STATES = {
    libvirt.VIR_DOMAIN_RUNNING: DomainState.RUNNING,
    libvirt.VIR_DOMAIN_BLOCKED: DomainState.RUNNING,
    libvirt.VIR_DOMAIN_PAUSED: DomainState.PAUSED,
    libvirt.VIR_DOMAIN_PMSUSPENDED: DomainState.PAUSED,
    libvirt.VIR_DOMAIN_SHUTDOWN: DomainState.RUNNING,
    libvirt.VIR_DOMAIN_SHUTOFF: DomainState.SHUTOFF,
    libvirt.VIR_DOMAIN_CRASHED: DomainState.CRASHED,
}
"""``SHUTDOWN`` means "being shut down": the domain still runs."""


class LibvirtDomain:
    """A domain of a libvirt connection.

    Implements :class:`pytest_kvm.hypervisor.protocol.Domain`. Every method may
    be called from any thread.
    """

    def __init__(
        self,
        connection: ProcessBound[libvirt.virConnect],
        domain: libvirt.virDomain,
        *,
        lifecycle: Lifecycle,
        process: HostProcess | None,
        xml: str = "",
        log: Path | None = None,
    ) -> None:
        self._connection = connection
        self._domain: ProcessBound[libvirt.virDomain] = ProcessBound(domain)
        self._lifecycle = lifecycle
        self._process = process
        self._given_xml = xml
        self._log = log
        self._watch = CallWatch(process, give_up=self.give_up) if process else None
        self._uuid: str = domain.UUIDString()
        self._snapshots = Snapshots(self)
        self._clock = GuestClock(self.pid)

    def __repr__(self) -> str:
        state = "alive" if self.alive() else self.end_reason()
        return f"<LibvirtDomain {self.name}: {state}>"

    @property
    def name(self) -> str:
        """The name, unique on its connection."""
        return self._lifecycle.name

    @property
    def uuid(self) -> str:
        """The UUID as text."""
        return self._uuid

    @property
    def pid(self) -> int | None:
        """QEMU's process id; None on another host and for the test driver."""
        return self._process.pid if self._process else None

    def clock(self) -> float:
        """Return seconds that pass only while the guest can run; see :class:`GuestClock`."""
        return self._clock.now()

    def state(self) -> DomainState:
        """Return the state that libvirt reports; ``SHUTOFF`` for a domain that is gone."""
        if not self.alive():
            return DomainState.SHUTOFF
        try:
            state = int(self._domain.get().info()[0])
        except libvirt.libvirtError as failure:
            if failure.get_error_code() in _GONE:
                return DomainState.SHUTOFF
            with translated(f"ask for the state of {self.name}", error=DomainFailed):
                raise
        return _STATES.get(state, DomainState.RUNNING)

    @property
    def log(self) -> Path | None:
        """The file with QEMU's command line and messages; None if nobody knows it."""
        return self._log

    def xml(self) -> str:
        """Return the live XML; of a domain that has ended, what it was started from."""
        if self._given_xml and not self.alive():
            return self._given_xml
        return str(self._call("read the XML of", lambda domain: domain.XMLDesc(0)))

    def alive(self) -> bool:
        """Return True until the domain's end is noticed; asks nobody, so it costs nothing."""
        return self._lifecycle.alive

    def end_reason(self) -> str:
        """Return why the domain ended; empty while it is alive."""
        return self._lifecycle.reason

    def on_end(self, callback: Callable[[str], None]) -> None:
        """Call ``callback`` once with the reason of the domain's end; see :meth:`Lifecycle.on_end`."""
        self._lifecycle.on_end(callback)

    def on_reset(self, callback: Callable[[], None]) -> None:
        """Call ``callback`` whenever the machine was reset; see :meth:`Lifecycle.on_reset`."""
        self._lifecycle.on_reset(callback)

    def wait_end(self, timeout: float) -> bool:
        """Block until the domain has ended; return False if it has not after ``timeout`` seconds."""
        return self._lifecycle.wait(timeout)

    def resume(self) -> None:
        """Let the vCPUs run."""
        self._call("resume", lambda domain: domain.resume())

    def suspend(self) -> None:
        """Stop the vCPUs."""
        self._call("suspend", lambda domain: domain.suspend())

    def reset(self) -> None:
        """Press the reset button."""
        self._call("reset", lambda domain: domain.reset(0))

    def shutdown(self) -> None:
        """Press the power button; the guest decides what follows."""
        self._call("press the power button of", _press_power_button)

    def inject_nmi(self) -> None:
        """Send a non-maskable interrupt to every vCPU."""
        self._call("send an NMI to", lambda domain: domain.injectNMI(0))

    def send_keys(self, keycodes: list[int], *, hold_ms: int = 50) -> None:
        """Press Linux keycodes (``linux/input-event-codes.h``) together for ``hold_ms`` milliseconds."""
        self._call(
            "press keys of",
            lambda domain: domain.sendKey(libvirt.VIR_KEYCODE_SET_LINUX, hold_ms, keycodes, len(keycodes), 0),
        )

    def screenshot(self) -> bytes:
        """Return the first screen as PNG or PPM bytes."""
        with self._answering() as raw:
            return _screenshot_of(self._connection.get(), raw)

    def qmp(self, command: str, arguments: Mapping[str, Any] | None = None) -> Any:  # noqa: ANN401 - JSON
        """Run a QMP command and return its ``return`` value."""
        with self._answering() as raw:
            return monitor.qmp(raw, command, arguments=arguments)

    def hmp(self, line: str) -> str:
        """Run a human monitor command and return what it printed."""
        with self._answering() as raw:
            return monitor.hmp(raw, line)

    def card_frames(self, device: str) -> CardFrames:
        """Return what has passed the host's end of a card (``virDomainInterfaceStats``)."""
        counted = self._call("count the frames of", lambda domain: domain.interfaceStats(device))
        received_bytes, received, _, _, sent_bytes, sent, _, _ = counted
        return CardFrames(received=received, received_bytes=received_bytes, sent=sent, sent_bytes=sent_bytes)

    def save_state(self, target: BinaryIO) -> None:
        """Write the device state, without the RAM file, to an open file; see :func:`device_state.save`."""
        with self._answering() as raw:
            device_state.save(raw, target)

    def load_state(self, source: BinaryIO) -> None:
        """Load what :meth:`save_state` wrote; see :func:`device_state.load`.

        Raises:
            StateDamaged: QEMU has ended because it cannot load the state.
            DomainFailed: QEMU has ended for another reason, or hangs.
        """
        try:
            with self._answering() as raw:
                device_state.load(raw, source)
        except DomainFailed as failure:
            # QEMU's monitor does not say why; how QEMU ended and its log do.
            if not self.wait_end(_ENDS_WITHIN):
                raise
            reason = self.end_reason()
            kind = StateDamaged if qemu_log.refuses_state(reason) else DomainFailed
            raise kind(f"the state of {self.name} was not loaded: {reason}") from failure

    def dump_memory(self, target: Path) -> None:
        """Write memory and registers to a file, as an ELF core dump; the guest stands still.

        QEMU's own command would do, but its event that tells of the end crashes
        libvirt 9.0, unless that has begun the dump itself.
        """
        form, flags = libvirt.VIR_DOMAIN_CORE_DUMP_FORMAT_RAW, libvirt.VIR_DUMP_MEMORY_ONLY
        self._call("dump the memory of", lambda domain: domain.coreDumpWithFormat(str(target), form, flags))

    def agent(self, command: str, arguments: Mapping[str, Any] | None = None, *, timeout: float) -> Any:  # noqa: ANN401 - JSON
        """Run a guest agent command; see :func:`monitor.agent`."""
        return monitor.agent(self._living(), command, arguments=arguments, timeout=timeout)

    def take_snapshot(self, name: str) -> None:
        """Write memory, devices and disks into the disks; see :class:`Snapshots`."""
        self._snapshots.take(name)

    def check_snapshot(self, name: str) -> None:
        """Check that the guest has the devices that it had when a snapshot was taken."""
        self._snapshots.check(name)

    def load_snapshot(self, name: str) -> None:
        """Put memory, devices and disks back, and leave the guest paused."""
        self._snapshots.load(name)

    def drop_snapshot(self, name: str) -> None:
        """Free the space that a snapshot occupies."""
        self._snapshots.drop(name)

    def save_libvirt_snapshot(self, name: str) -> None:
        """Write a snapshot into the disks, from copies of which a new domain will be started."""
        with self._answering() as raw:
            save_libvirt_snapshot(raw, name)

    def how_qemu_ended(self, within: float) -> str:
        """Wait for QEMU's end, at most ``within`` seconds, and return how it ended ("was killed by …")."""
        if self._process is None:
            return "ended"
        self._process.wait(within)
        return self._process.how_it_ended()

    def destroy(self) -> None:
        """Kill QEMU; it is gone when this returns. A second call does nothing.

        libvirt would send SIGTERM and check for the end every 200 ms. So a QEMU
        that is a child of this process is killed and reaped here instead, in a
        few milliseconds. libvirt notices its end and cleans up in the background.

        Raises:
            DomainFailed: QEMU did not die (it hangs in the kernel), or libvirt
                refused.
        """
        if self._lifecycle.settled:
            return  # a later domain may have its UUID
        raw = self._domain.get()
        self._lifecycle.expect("destroyed")
        if not self._kill():
            try:
                raw.destroy()
            except libvirt.libvirtError as failure:
                if failure.get_error_code() not in _GONE:
                    with translated(f"destroy {self.name}", error=DomainFailed):
                        raise
        self._lifecycle.note_end("destroyed")

    def _kill(self) -> bool:
        """Kill QEMU if this process may; return False if libvirt still has to destroy the domain."""
        process = self._process
        if process is None:
            return False
        try:
            process.kill()
        except PermissionError:
            return False  # another user's daemon started QEMU
        if not process.wait(_KILLED_WITHIN):
            raise DomainFailed(
                f"QEMU of {self.name} (pid {process.pid}) outlived SIGKILL by {_KILLED_WITHIN:.0f} s",
                resolution=f"see what it waits for: cat /proc/{process.pid}/stack",
            )
        return process.is_our_child

    def is_of(self, life: Lifecycle) -> bool:
        """Say whether this is the domain of a life; a former domain may have had its name."""
        return self._lifecycle is life

    def give_up(self, reason: str) -> None:
        """Note that the domain is of no use any more, and why; remove its QEMU in the background."""
        self._lifecycle.give_up(reason)
        threading.Thread(target=self._remove, name=f"kvm-remove-{self.name}", daemon=True).start()

    def _remove(self) -> None:
        try:
            self.destroy()
        except KvmError:  # whoever removes the guest tries again
            _log.warning("%s has ended, and its QEMU could not be removed", self.name, exc_info=True)

    @contextmanager
    def _answering(self) -> Generator[libvirt.virDomain]:
        """Yield the domain for a call that QEMU has to answer; a QEMU that does not is given up.

        Raises:
            DomainFailed: The domain has ended.
            HypervisorError: The call failed.
        """
        raw = self._living()
        try:
            with self._watch.call() if self._watch else nullcontext():
                yield raw
        except HypervisorError as failure:
            if not self._lifecycle.was_given_up:
                raise
            # libvirt only says that the connection to QEMU broke off.
            raise type(failure)(f"{self.name} has ended: {self.end_reason()}") from failure

    def _living(self) -> libvirt.virDomain:
        if not self.alive():
            raise DomainFailed(f"{self.name} has ended: {self.end_reason()}")
        return self._domain.get()

    def _call(self, doing: str, call: Callable[[libvirt.virDomain], Any]) -> Any:  # noqa: ANN401 - JSON
        with self._answering() as raw, translated(f"{doing} {self.name}", error=DomainFailed):
            return call(raw)


def _press_power_button(domain: libvirt.virDomain) -> None:
    try:
        # Without the flag libvirt would ask the guest agent instead, if there is one.
        domain.shutdownFlags(libvirt.VIR_DOMAIN_SHUTDOWN_ACPI_POWER_BTN)
    except libvirt.libvirtError as failure:
        if failure.get_error_code() != libvirt.VIR_ERR_INVALID_ARG:
            raise
        domain.shutdown()  # the test driver accepts no flags


def _screenshot_of(connection: libvirt.virConnect, domain: libvirt.virDomain) -> bytes:
    """Return the first screen as PNG or PPM, whichever QEMU and libvirt give.

    Raises:
        DomainFailed: There is no screen, or the picture is absurdly large.
    """
    name: str = domain.name()
    chunks: list[bytes] = []
    with translated(f"take a screenshot of {name}", error=DomainFailed):
        stream = connection.newStream(0)
        domain.screenshot(stream, 0, 0)
        received = 0
        while chunk := stream.recv(256 * 1024):
            received += len(chunk)
            if received > _MOST_SCREEN_BYTES:
                stream.abort()
                raise DomainFailed(
                    f"the screenshot of {name} is larger than {_MOST_SCREEN_BYTES} bytes",
                    resolution="set a smaller screen in the guest",
                )
            chunks.append(chunk)
        stream.finish()
    return b"".join(chunks)
