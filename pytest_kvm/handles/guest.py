"""``Guest``: the handle by which a test uses a guest.

Every verb waits until the guest is ready, and calls the module that does the
work.
"""

from __future__ import annotations

import itertools
import os
import re
import time
from collections.abc import Mapping
from concurrent.futures import Future
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pytest_kvm.at_once import wait_for
from pytest_kvm.handles import keyboard
from pytest_kvm.handles.callbacks import Callbacks
from pytest_kvm.handles.savepoint import Savepoint
from pytest_kvm.handles.transcript import NotedAgent, transcript_of, with_transcript
from pytest_kvm.machine import power, waits
from pytest_kvm.machine.savepoints import resume, take
from pytest_kvm.machine.screen import to_png
from pytest_kvm.ssh.files import GET_LIMIT, Files
from pytest_kvm.ssh.output import OUTPUT_LIMIT

if TYPE_CHECKING:
    from pytest_kvm.handles.segment import GuestNic, Segment
    from pytest_kvm.machine.agent import GuestAgent
    from pytest_kvm.machine.console import Console
    from pytest_kvm.machine.machine import Machine
    from pytest_kvm.machine.port_forwards import Forward
    from pytest_kvm.results import CommandResult
    from pytest_kvm.spec.subnets import IpVersion
    from pytest_kvm.ssh.command_line import Command
    from pytest_kvm.ssh.process import Process

State = Literal["booting", "running", "ended", "failed"]

_savepoint_numbers = itertools.count(1)


_OF_NO_RUN = Callbacks()


@with_transcript(but=["address", "console_tail", "wait_ready"])
class Guest:
    """One virtual machine, which boots in the background.

    Every verb waits until the guest is ready. If the guest does not become
    ready, every verb raises the boot's own :class:`~pytest_kvm.errors.BootFailed`.
    Time-outs are seconds; None takes the run's. Paths in the guest are absolute
    or below the login user's home.

    Args:
        name: The guest's name in logs and messages.
        boot: Gives the guest's machine when it is ready.
        summary: What the guest is made of, for ``repr()``.
        callbacks: What it asks and tells its run.
    """

    def __init__(
        self,
        name: str,
        boot: Future[Machine],
        *,
        summary: str = "",
        callbacks: Callbacks = _OF_NO_RUN,
    ) -> None:
        self.name = name
        self.nics: tuple[GuestNic, ...] = ()
        """The guest's cards on segments, in the spec's order."""
        self._boot = boot
        self._summary = summary
        self._callbacks = callbacks

    def __repr__(self) -> str:
        return f"<Guest {self.name}: {', '.join(filter(None, [self._summary, self.state]))}>"

    @property
    def state(self) -> State:
        """The guest's state now; never waits."""
        if not self._boot.done():
            return "booting"
        if self._boot.cancelled() or self._boot.exception() is not None:
            return "failed"
        return "running" if self._boot.result().domain.alive() else "ended"

    @property
    def machine(self) -> Machine:
        """The guest's machine, for what no verb covers; waits until it is ready.

        The caller may change the guest by it, so this counts as a use of the guest.
        """
        self.wait_ready()
        self._callbacks.before_use(self)
        return self._boot.result()

    def wait_ready(self, timeout: float | None = None) -> None:
        """Wait until the guest is ready.

        Raises:
            BootFailed: The guest did not become ready; the subclass says why.
            TimeoutError: The guest still boots after ``timeout`` seconds; the boot goes on.
        """
        if timeout is None:
            wait_for([self._boot])
        self._callbacks.on_booted(self, self._boot.exception(timeout))
        self._boot.result()

    @property
    def boot_phases(self) -> Mapping[str, float]:
        """Seconds from power on to each rung of the readiness ladder."""
        return self._booted_machine.phases

    @property
    def kernel(self) -> str:
        """The running kernel's release, as ``uname -r`` prints it."""
        return self.run(["uname", "-r"]).stdout.strip()

    @property
    def hostname(self) -> str:
        """The guest's host name, as ``uname -n`` prints it."""
        return self.run(["uname", "-n"]).stdout.strip()

    @property
    def domain_xml(self) -> str:
        """The live domain XML, as ``virsh dumpxml`` prints it; after its end what it was started from."""
        return self._booted_machine.domain.xml()

    @property
    def ssh_command(self) -> str:
        """A command to paste into a terminal: it logs in, and accepts only the guest's own host key."""
        return self.machine.access.ssh_command()

    def address(self, segment: Segment, *, version: IpVersion = 4) -> str:
        """Return the guest's fixed address on a segment; never waits.

        Args:
            segment: What a ``@kvm.network`` fixture returned; of several cards there the first counts.
            version: Version of IP.

        Raises:
            SpecError: The guest has no card on the segment, or no fixed address.
        """
        return segment.address_of(self, version=version)

    # ------------------------------------------------------------ commands

    def run(
        self,
        command: Command,
        *,
        input: str | bytes | None = None,  # noqa: A002 - subprocess.run's word
        env: Mapping[str, str] | None = None,
        cwd: str | None = None,
        user: str | None = None,
        timeout: float | None = None,
        check: bool = True,
    ) -> CommandResult:
        """Run a command in the guest and wait for its end.

        Args:
            command: A list of words, each of which is quoted, or a string for the shell.
            input: The command's standard input.
            env: Variables to add to its environment.
            cwd: The directory to run it in.
            user: The user that runs it; None: the user of the SSH login.
            timeout: Seconds.
            check: Raise if the command exits non-zero.

        Raises:
            CommandFailed: The command exited non-zero and ``check`` is true; or the
                login shell ended with exit code 0 before it ran the command.
            CommandTimeout: The command ran out of time; carries what it wrote.
            GuestGone: The guest ended.
            SshUnavailable: The connection was lost.
        """
        return self.machine.shell.run(
            command, input=input, env=env, cwd=cwd, user=user, timeout=timeout, check=check
        )

    def start(
        self,
        command: Command,
        *,
        env: Mapping[str, str] | None = None,
        cwd: str | None = None,
        user: str | None = None,
    ) -> Process:
        """Start a command in the background; arguments as in :meth:`run`."""
        return self.machine.shell.start(command, env=env, cwd=cwd, user=user)

    @property
    def agent(self) -> GuestAgent:
        """QEMU's guest agent, which runs commands without network or login."""
        return NotedAgent(self.machine, transcript_of(self))

    # ------------------------------------------------------------ files and ports

    def put(
        self, local: str | os.PathLike[str], remote: str, *, mode: int | None = None, owner: str | None = None
    ) -> None:
        """Copy a file, or a folder's content, into the guest.

        Args:
            local: File or folder on the host.
            remote: Path in the guest; with a slash at the end, the folder to put it into.
            mode: A single file's permission bits; None: those of ``local``.
            owner: "user" or "user:group"; None: the login user.

        Raises:
            OSError: ``local`` cannot be read.
            RemoteFileError: The guest could not write.
        """
        self._files.put(local, remote, mode=mode, owner=owner)

    def get(self, remote: str, local: str | os.PathLike[str], *, max_bytes: int = GET_LIMIT) -> Path:
        """Copy a file, or a folder's content, out of the guest and return where it is.

        Nothing is written outside ``local``, whatever the guest sends.

        Raises:
            OSError: ``local`` cannot be written.
            RemoteFileError: The guest could not read, or sent more than ``max_bytes``.
        """
        return self._files.get(remote, local, max_bytes=max_bytes)

    def write_text(
        self, path: str, text: str, *, mode: int = 0o644, owner: str | None = None, append: bool = False
    ) -> None:
        """Write UTF-8 text to a file in the guest; see :meth:`write_bytes`."""
        self._files.write_text(path, text, mode=mode, owner=owner, append=append)

    def write_bytes(
        self, path: str, data: bytes, *, mode: int = 0o644, owner: str | None = None, append: bool = False
    ) -> None:
        """Write a file in the guest, whole or not at all.

        Args:
            path: Path in the guest.
            data: Its new content.
            mode: Permission bits; when appending, those of a new file.
            owner: "user" or "user:group"; None: the login user.
            append: Add ``data`` to the file's content.

        Raises:
            RemoteFileError: The guest could not write.
        """
        self._files.write_bytes(path, data, mode=mode, owner=owner, append=append)

    def read_text(self, path: str, *, max_bytes: int = OUTPUT_LIMIT) -> str:
        """Return a file's content, decoded as UTF-8; bytes that are not UTF-8 become U+FFFD."""
        return self._files.read_text(path, max_bytes=max_bytes)

    def read_bytes(self, path: str, *, max_bytes: int = OUTPUT_LIMIT) -> bytes:
        """Return a file's content.

        Raises:
            RemoteFileError: The file cannot be read, or is larger than ``max_bytes``.
        """
        return self._files.read_bytes(path, max_bytes=max_bytes)

    def forward(self, guest_port: int, *, host_port: int = 0) -> Forward:
        """Make a TCP port of the guest reachable on the host's loopback address.

        Args:
            guest_port: Port in the guest.
            host_port: Port on the host; 0: a free one.

        Returns:
            The forwarded port, with ``host`` and ``port``; a context manager that closes it.

        Raises:
            NetworkFailed: The host's port is taken.
        """
        return self.machine.forwards.add(guest_port, host_port=host_port)

    # ------------------------------------------------------------ waits

    def wait_for_unit(self, unit: str, *, timeout: float | None = None) -> None:
        """Wait until a systemd unit is active.

        A service that systemd calls active as soon as its process has started must
        have been active for one second; a service that was restarted, for three.

        Raises:
            UnitFailed: The unit failed, does not exist, or is inactive and no job will
                start it; with its status and journal.
            WaitTimeout: With the last observation.
            GuestGone: The guest ended or panicked.
        """
        waits.wait_for_unit(self.machine, unit, timeout=self._seconds(timeout))

    def wait_for_port(
        self, port: int, *, host: str = "localhost", closed: bool = False, timeout: float | None = None
    ) -> None:
        """Wait until a TCP port accepts connections from inside the guest.

        Args:
            port: TCP port.
            host: Name or address as the guest sees it.
            closed: Wait until the port accepts no connections.
            timeout: Seconds.

        Raises:
            WaitTimeout: With the last observation.
            GuestGone: The guest ended or panicked.
        """
        seconds = self._seconds(timeout)
        waits.wait_for_port(self.machine, port, host=host, closed=closed, timeout=seconds)

    def wait_for_file(self, path: str, *, absent: bool = False, timeout: float | None = None) -> None:
        """Wait until a path exists, or with ``absent`` until it does not.

        Raises:
            WaitTimeout: With the last observation.
            GuestGone: The guest ended or panicked.
        """
        waits.wait_for_file(self.machine, path, absent=absent, timeout=self._seconds(timeout))

    def wait_until(
        self, command: Command, *, user: str | None = None, timeout: float | None = None
    ) -> CommandResult:
        """Repeat a command until it exits with 0, and return that result.

        Raises:
            WaitTimeout: With the last exit code and output.
            GuestGone: The guest ended or panicked.
        """
        seconds = self._seconds(timeout)
        return waits.wait_until_succeeds(self.machine, command, user=user, timeout=seconds)

    def wait_for_console(
        self, pattern: str | re.Pattern[str], *, since: int | None = None, timeout: float | None = None
    ) -> re.Match[str]:
        """Wait until a text that the guest prints on its console matches a pattern.

        Args:
            pattern: Regular expression, searched with ``re.MULTILINE``.
            since: An earlier ``console.offset()``; None: from now on.
            timeout: Seconds.

        Raises:
            WaitTimeout: With the console's tail.
            GuestGone: The guest ended before.
        """
        return self.machine.console.wait(pattern, since=since, timeout=self._seconds(timeout))

    def wait_for_log(
        self, pattern: str | re.Pattern[str], *, unit: str | None = None, timeout: float | None = None
    ) -> str:
        """Wait until a journal line of this boot matches a pattern, and return the line.

        Raises:
            WaitTimeout: With the last line.
            GuestGone: The guest ended or panicked.
        """
        return waits.wait_for_log(self.machine, pattern, unit=unit, timeout=self._seconds(timeout))

    # ------------------------------------------------------------ power

    def reboot(self, *, hard: bool = False, timeout: float | None = None) -> None:
        """Restart the guest and log in again; a different boot id proves the restart.

        Args:
            hard: Press the reset button: nothing is stopped or written back first.
            timeout: Seconds until the login.

        Raises:
            BootFailed: The guest did not become ready again.
        """
        limits = self._booted_machine.timeouts
        limit = limits.shutdown + limits.boot if timeout is None else timeout
        machine, begun = self.machine, time.monotonic()
        try:
            power.reboot(machine, hard=hard, timeout=limit)
        finally:
            self._callbacks.on_reboot(time.monotonic() - begun)

    def shutdown(self, *, button: bool = False, timeout: float | None = None) -> None:
        """Shut the guest down in good order; it has ended afterwards.

        Args:
            button: Press the power button (ACPI) instead of asking systemd.
            timeout: Seconds.

        Raises:
            WaitTimeout: The guest still runs.
        """
        limit = self._booted_machine.timeouts.shutdown if timeout is None else timeout
        power.shutdown(self.machine, button=button, timeout=limit)

    def power_off(self) -> None:
        """Switch the guest off at once, as by pulling the power cable; it has ended afterwards."""
        power.power_off(self.machine)

    def power_on(self, *, timeout: float | None = None) -> None:
        """Switch on a guest that has ended, in whatever way, and log in.

        It is the same machine, with its disks, cards and links. Its memory, forwarded
        ports and savepoints are gone. Ask anew for ``console``, ``agent`` and ``machine``.

        Args:
            timeout: Seconds until the login.

        Raises:
            GuestError: The guest runs.
            BootFailed: The guest did not become ready.
            DomainFailed: libvirt or QEMU refused; the guest stays off.
        """
        limit = self._booted_machine.timeouts.boot if timeout is None else timeout
        self._callbacks.before_use(self)
        begun = time.monotonic()
        machine = self._callbacks.start_again()
        try:
            power.power_on(machine, timeout=limit)
        finally:
            self._callbacks.on_reboot(time.monotonic() - begun)

    def crash(self, *, nmi: bool = False) -> str:
        """Make the kernel panic, and return the console's line with the panic, which fails no test."""
        return power.crash(self.machine, nmi=nmi)

    def pause(self) -> None:
        """Stop the guest's processors; commands hang until :meth:`resume`."""
        self.machine.domain.suspend()

    def resume(self) -> None:
        """Let the guest's processors run again."""
        resume(self.machine)

    # ------------------------------------------------------------ savepoints

    def savepoint(self, name: str | None = None) -> Savepoint:
        """Take a savepoint of memory and all writable disks together.

        Args:
            name: Name of the savepoint in messages; it need not be unique.

        Returns:
            The savepoint, with ``restore()`` and ``drop()``; a context manager that does both.

        Raises:
            SavepointRefused: A background process or a forwarded port of the
                test is open, or a writable disk is not qcow2; the message names the cause.
            SnapshotFailed: QEMU failed, for instance because the disk is full.
            GuestError: The guest's clock could not be set afterwards; there is no savepoint.
        """
        machine = self.machine
        number = next(_savepoint_numbers)
        tag = f"hand-{number}"
        take([machine], tag, by_hand=True)
        name = name or f"savepoint {number}"
        return Savepoint(
            name, tag=tag, machines=[machine], use=lambda: [self.machine], transcripts=[transcript_of(self)]
        )

    # ------------------------------------------------------------ what it shows, and its keyboard

    @property
    def console(self) -> Console:
        """The guest's console: its log, and input to it."""
        return self.machine.console

    def console_tail(self, lines: int = 40) -> str:
        """Return the console's last lines; empty if the guest is not ready. Never waits or raises."""
        return self._boot.result().console.tail(lines) if self.state in {"running", "ended"} else ""

    def screenshot(self, path: str | Path | None = None) -> bytes:
        """Return the first screen as PNG, and write it to ``path`` if one is given.

        Raises:
            DomainFailed: The guest has no screen.
        """
        picture = to_png(self._booted_machine.domain.screenshot())
        if path is not None:
            Path(path).write_bytes(picture)
        return picture

    def send_keys(self, *chords: str) -> None:
        """Press keys on the guest's keyboard, one chord after the other.

        Args:
            chords: "enter", "ctrl-alt-f2"; each is pressed and released.

        Raises:
            SpecError: A name is no key's.
        """
        for codes in [keyboard.chord(chord) for chord in chords]:
            self.machine.domain.send_keys(codes)

    def type_text(self, text: str) -> None:
        """Type text on the guest's keyboard, as on a US layout.

        Raises:
            SpecError: A character is not on that keyboard.
        """
        for codes in keyboard.chords_of(text):
            self.machine.domain.send_keys(codes)

    def journal(self, unit: str | None = None, *, since: str | None = None, lines: int | None = None) -> str:
        """Return the journal of this boot.

        Args:
            unit: Only this unit's messages.
            since: As ``journalctl --since`` takes it: "-5min", "12:00:00".
            lines: The last lines only.
        """
        options = {"unit": unit, "since": since, "lines": lines}
        chosen = [f"--{name}={value}" for name, value in options.items() if value is not None]
        return self._as_root(["journalctl", "--boot", "--no-pager", "--output=short-precise", *chosen])

    def dmesg(self) -> str:
        """Return the kernel's log buffer."""
        return self._as_root(["dmesg"])

    # ------------------------------------------------------------ inside

    @property
    def _booted_machine(self) -> Machine:
        """The guest's machine, for verbs that do not change the guest; waits until it is ready."""
        self.wait_ready()
        return self._boot.result()

    @property
    def _files(self) -> Files:
        machine = self.machine
        return Files(machine.shell, log=machine.log)

    def _seconds(self, timeout: float | None) -> float:
        return self._booted_machine.timeouts.command if timeout is None else timeout

    def _as_root(self, argv: list[str]) -> str:
        return self.machine.shell.run(argv, user="root").stdout


def replace_machine(guest: Guest, boot: Future[Machine]) -> None:
    """Point a guest's handle at another machine, which was started for a reset or switched on again.

    This is no verb, because tests must not call it: the former machine is not removed.
    """
    guest._boot = boot  # noqa: SLF001 - in the same module, and no verb: see above


def running_machine(guest: Guest) -> Machine | None:
    """Return the machine of a guest that is ready and has not ended; never waits, and counts as no use."""
    return guest._boot.result() if guest.state == "running" else None  # noqa: SLF001 - of the same module
