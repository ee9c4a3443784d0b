"""``Process``: a command that runs in a guest, while a test waits for it or in the background."""

from __future__ import annotations

import logging
import re
import signal as signals
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from pytest_kvm.errors import CommandFailed, CommandTimeout, GuestError, GuestGone, SshUnavailable
from pytest_kvm.results import CommandResult, label, streams_of
from pytest_kvm.ssh.output import OUTPUT_LIMIT, Channel, Output, send
from pytest_kvm.waiting import Clock

_LOOK_EVERY = 0.5
"""Seconds between two checks whether the guest still runs."""
_SIGNAL_WITHIN = 10.0
"""Seconds for a started command to print its process group, and for a killed command to end."""
_SIGNAL = re.compile(r"(?:SIG)?([A-Z][A-Z0-9+-]*)")


@dataclass(frozen=True, kw_only=True)
class CommandContext:
    """What a process gets from the shell that started it."""

    guest: str
    log: logging.Logger
    lost: Callable[[], GuestError | None]
    """Return why no answer can come any more (guest or connection lost); None while both are there."""
    round_trip: Callable[[], object]
    """Return once sshd has answered: by then all that sshd sent before has arrived."""
    send_signal: Callable[[str, int], object]
    """Send a signal to a process group, by a second command."""
    timeout: float
    """Seconds to wait if the caller names no time-out."""
    clock: Clock = time.monotonic
    """Measures the time-outs."""
    output_limit: int = OUTPUT_LIMIT
    """Bytes kept of each stream."""


class Process:
    """A running command, as :meth:`Guest.start` returns it.

    It is a context manager: leaving it ends the command. All output of the command
    is kept and logged, whether it is read or not.
    """

    def __init__(self, channel: Channel, argv: tuple[str, ...] | str, *, context: CommandContext) -> None:
        self.argv = argv
        self._channel = channel
        self._context = context
        self._begun = time.monotonic()
        self._took: float | None = None
        self._output = Output(channel, name=label(argv)[:24], log=context.log, limit=context.output_limit)

    # ------------------------------------------------------------ what it does

    @property
    def running(self) -> bool:
        """Whether the command runs: no exit status has come, and the connection is not lost."""
        return not self._channel.status_event.is_set()

    def poll(self) -> int | None:
        """Return the exit code; None while the command runs, -1 if the connection was lost before its end."""
        return None if self.running else self._channel.exit_status

    def so_far(self) -> CommandResult:
        """Return the output until now; ``exit_code`` is -1 while the command runs."""
        code = self.poll()
        return CommandResult(
            argv=self.argv,
            exit_code=-1 if code is None else code,
            stdout_bytes=self._output.out.value(),
            stderr_bytes=self._output.err.value(),
            duration=self._took if self._took is not None else self._elapsed(),
            guest=self._context.guest,
        )

    def lines(self, *, timeout: float | None = None) -> Iterator[str]:
        """Yield standard output line by line as it comes, until the command ends.

        Args:
            timeout: Seconds to wait for each next line; None: the run's command time-out.

        Raises:
            CommandTimeout: No line came in time; the command goes on.
            GuestGone: The guest ended.
            SshUnavailable: The connection was lost.
        """
        seconds = self._context.timeout if timeout is None else timeout
        position = 0
        while line := self._line(position, self._context.clock() + seconds):
            position += len(line)
            yield line.decode(errors="replace").removesuffix("\n").removesuffix("\r")

    def wait(self, timeout: float | None = None) -> CommandResult:
        """Return the result once the command has ended; the exit code is not checked.

        The command has ended when its exit status is there and its output is
        closed. A child process that it left behind and that holds the output open
        (``sleep 1000 &``) is not waited for; ``ssh(1)`` would wait for it.

        Args:
            timeout: Seconds; None: the run's command time-out.

        Raises:
            CommandTimeout: The command still runs. It goes on and can be waited for again.
            CommandFailed: The command wrote more than can be kept, and was killed; or
                the login shell ended with exit code 0 and did not run it.
            GuestGone: The guest ended.
            SshUnavailable: The connection was lost.
        """
        if not self._ended_within(self._context.timeout if timeout is None else timeout):
            raise self._timed_out()
        if self._took is None:
            self._took = self._elapsed()
        self._output.drain(self._context.round_trip)
        self._check_alive()
        if self.poll() == 0 and not self._output.begun:
            raise self._never_run()
        return self.so_far()

    # ------------------------------------------------------------ what it is told

    def write(self, data: str | bytes) -> None:
        """Write to the command's standard input; blocks while the command does not read.

        Raises:
            SshUnavailable: The standard input is closed, or the connection is lost.
            GuestGone: The guest ended.
        """
        try:
            send(self._channel, data.encode() if isinstance(data, str) else data)
        except (OSError, EOFError) as error:
            lost = self._context.lost() or SshUnavailable(f"{self._where()}: its standard input is closed")
            raise lost from error

    def close_stdin(self) -> None:
        """Close the command's standard input: the command reads its end."""
        try:
            self._channel.shutdown_write()
        except (OSError, EOFError):
            self._context.log.debug("%s: the connection went before standard input did", self._where())

    def signal(self, name: str | signals.Signals) -> None:
        """Send a signal to the command and its children (its process group); do nothing if it has ended.

        Args:
            name: "TERM", "SIGTERM" or ``signal.SIGTERM``.
        """
        found = _SIGNAL.fullmatch(name.name if isinstance(name, signals.Signals) else name)
        if found is None:
            raise ValueError(f"{name!r} is not a signal's name")
        output = self._output
        output.await_change(lambda: output.group is not None or output.ended, _SIGNAL_WITHIN)
        if self.running and output.group is not None:
            self._context.send_signal(found[1], output.group)

    def kill(self) -> None:
        """Kill the command and its children."""
        self.signal("KILL")

    def stop(self, grace: float = 2.0) -> CommandResult:
        """End the command by SIGTERM, then SIGKILL, and return its result.

        Args:
            grace: Seconds between the two signals.
        """
        try:
            if self.running:
                self.signal("TERM")
                if not self._ended_within(grace):
                    self.kill()
            return self.wait(_SIGNAL_WITHIN)
        finally:
            self.release()

    def release(self) -> None:
        """Close the channel; this does not end a command that still runs."""
        self._channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End the command; do nothing if the guest or the connection is gone."""
        try:
            self.stop()
        except (GuestGone, SshUnavailable):
            self._context.log.debug("%s: the guest was gone before it was stopped", self._where())

    def __repr__(self) -> str:
        code = self.poll()
        return f"<Process {self._where()}: {'running' if code is None else f'exit code {code}'}>"

    # ------------------------------------------------------------ inside

    def _ended_within(self, seconds: float) -> bool:
        deadline = self._context.clock() + seconds
        while not self._channel.status_event.wait(
            min(_LOOK_EVERY, max(0.0, deadline - self._context.clock()))
        ):
            self._check_alive()
            if self._context.clock() >= deadline:
                return False
        return True

    def _elapsed(self) -> float:
        return time.monotonic() - self._begun

    def _where(self) -> str:
        return f"{self._context.guest}: `{label(self.argv)}`"

    def _line(self, position: int, deadline: float) -> bytes:
        """Return the line that starts at a position; b"" at the end of the output."""
        out = self._output.out
        while (line := out.line_at(position)) is None:
            if not self.running:
                self._output.drain(self._context.round_trip)
                continue
            self._check_alive()
            left = deadline - self._context.clock()
            if left <= 0:
                raise self._timed_out()
            self._output.await_change(lambda: out.line_at(position) is not None, min(_LOOK_EVERY, left))
        if not line:
            self._check_alive()
        return line

    def _check_alive(self) -> None:
        """Raise if the command's result can no longer come, or can no longer be complete."""
        if self._output.overflowed:
            self.kill()
            raise CommandFailed(
                f"{self._where()}: wrote more than {self._context.output_limit} bytes and was killed",
                resolution="redirect its output to a file in the guest and get() that",
                result=self.so_far(),
            )
        if (self.running or self._channel.exit_status == -1) and (lost := self._context.lost()):
            lost.details = "\n".join(filter(None, (lost.details, streams_of(self.so_far()))))
            raise lost

    def _never_run(self) -> CommandFailed:
        result = self.so_far()
        return CommandFailed(
            f"{self._where()}: the login shell ended with exit code 0 and did not run it",
            details=streams_of(result),
            resolution="look for an `exit` or `exec` in the shell's start-up files",
            result=result,
        )

    def _timed_out(self) -> CommandTimeout:
        so_far = self.so_far()
        return CommandTimeout(
            f"{self._where()}: still running after {self._elapsed():.1f} s",
            details=streams_of(so_far),
            resolution="pass a longer timeout=, or start() it and wait for what you need",
            result=so_far,
        )
