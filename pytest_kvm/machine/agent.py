"""Runs programs and reads files in a guest through QEMU's guest agent, without network or login.

Protocol: qemu-ga-ref(7). The agent answers in 4-8 ms and starts early in the
boot, so it can tell why SSH does not answer.
"""

from __future__ import annotations

import base64
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

from pytest_kvm.errors import AgentError, CommandTimeout, WaitTimeout
from pytest_kvm.hypervisor.protocol import Domain
from pytest_kvm.results import CommandResult
from pytest_kvm.waiting import NotYet, wait_until

READ_LIMIT = 1024 * 1024
"""Bytes of a file that :meth:`GuestAgent.read_text` returns at most."""
_LOOK_EVERY = 0.05
_TOO_LONG = "No complete agent response"
"""What libvirt says of an answer above ``QEMU_AGENT_MAX_RESPONSE`` (src/qemu/qemu_agent.c)."""


class GuestAgent:
    """The guest agent of one guest.

    Args:
        domain: The guest's domain.
        timeout: Seconds that one call may take.
    """

    def __init__(self, domain: Domain, *, timeout: float) -> None:
        self._domain = domain
        self._timeout = timeout

    def __repr__(self) -> str:
        return f"<GuestAgent of {self._domain.name}>"

    def ping(self) -> None:
        """Check that the agent answers.

        Raises:
            AgentError: The agent does not answer: not installed, not started yet, or hung.
        """
        self.call("guest-ping")

    def wait(self, *, timeout: float) -> None:
        """Wait until the agent answers.

        Raises:
            AgentError: The agent did not answer within ``timeout`` seconds.
        """

        def answers() -> None:
            try:
                self.ping()
            except AgentError as error:
                if not self._domain.alive():
                    raise
                raise NotYet(error.brief) from error

        wait_until(
            answers,
            describe=f"the agent of {self._domain.name}",
            timeout=timeout,
            error=AgentError,
            clock=self._domain.clock,
        )

    def call(self, command: str, arguments: Mapping[str, Any] | None = None) -> Any:  # noqa: ANN401 - JSON
        """Run one agent command (``guest-get-osinfo``) and return its ``return`` value.

        Raises:
            AgentError: The agent did not answer or refused.
        """
        return self._domain.agent(command, arguments, timeout=self._timeout)

    def exec(
        self,
        argv: Sequence[str],
        *,
        input: str | bytes | None = None,  # noqa: A002 - subprocess.run's word
        env: Mapping[str, str] | None = None,
        timeout: float | None = None,
        check: bool = True,
    ) -> CommandResult:
        """Run a program as root and return its result.

        The agent sends the output when the program has ended, some 7 MiB at
        most: libvirt takes no answer that is longer than 10 MiB, and after such
        an answer it talks no more to the agent until the agent's service is
        restarted. A program that runs out of time goes on in the guest, because
        the agent has no command to end it.

        Args:
            argv: The program and its arguments; no shell takes part.
            input: Standard input.
            env: The program's whole environment; None: the agent's own.
            timeout: Seconds; None: what one agent call may take.
            check: Raise if the program exits non-zero.

        Raises:
            AgentError: The agent did not answer or refused (some
                distributions forbid ``guest-exec`` in qemu-ga's settings).
            CommandFailed: The program exited non-zero and ``check`` is true.
            CommandTimeout: The program still ran after ``timeout`` seconds.
        """
        begun = time.monotonic()
        limit = self._timeout if timeout is None else timeout
        pid = self.start(argv, input=input, env=env)
        try:
            result = self.finish(argv, pid, timeout=limit)
        except WaitTimeout as late:
            raise CommandTimeout(
                f"{self._domain.name}: {argv[0]}, run by the guest agent, still ran after {limit:.0f} s",
                resolution=f"it goes on as process {pid}",
                result=_result(argv, {"exitcode": -1}),
            ) from late
        result = replace(result, duration=time.monotonic() - begun)
        return result.check() if check else result

    def start(
        self,
        argv: Sequence[str],
        *,
        input: str | bytes | None = None,  # noqa: A002 - subprocess.run's word
        env: Mapping[str, str] | None = None,
    ) -> int:
        """Start a program as root and return its process id; see :meth:`exec`.

        Raises:
            AgentError: The agent did not answer or refused.
        """
        arguments: dict[str, Any] = {"path": argv[0], "arg": list(argv[1:]), "capture-output": True}
        if input is not None:
            data = input.encode() if isinstance(input, str) else input
            arguments["input-data"] = base64.b64encode(data).decode()
        if env is not None:
            arguments["env"] = [f"{name}={value}" for name, value in env.items()]
        pid: int = self.call("guest-exec", arguments)["pid"]
        return pid

    def finish(
        self, argv: Sequence[str], pid: int, *, timeout: float, every: float = _LOOK_EVERY
    ) -> CommandResult:
        """Wait until a program that :meth:`start` started has ended, and return its result.

        The agent gives the result only once.

        Args:
            argv: The program and its arguments, for the result and for messages.
            pid: From :meth:`start`.
            timeout: Seconds.
            every: Seconds between two questions to the agent.

        Raises:
            AgentError: The agent did not answer, or knows of no such program.
            WaitTimeout: The program still runs.
        """

        def poll_end() -> CommandResult:
            try:
                status: dict[str, Any] = self.call("guest-exec-status", {"pid": pid})
            except AgentError as error:
                if _TOO_LONG in error.brief:
                    raise self._too_much(argv) from error
                raise
            if not status["exited"]:
                raise NotYet("still running")
            if status.get("out-truncated") or status.get("err-truncated"):
                raise self._too_much(argv)
            return _result(argv, status)

        return wait_until(poll_end, describe=argv[0], timeout=timeout, every=every, clock=self._domain.clock)

    def _too_much(self, argv: Sequence[str]) -> AgentError:
        return AgentError(
            f"{self._domain.name}: {argv[0]} printed more than the guest agent passes on",
            resolution="use guest.run(), or have it write to a file; "
            "if the agent is silent now: systemctl restart qemu-guest-agent",
        )

    def open(self, path: str, *, mode: Literal["r", "r+"] = "r+") -> int:
        """Open an existing file, FIFO or device, and return the agent's handle.

        Args:
            path: The file.
            mode: ``r``: for :meth:`read` alone.

        Raises:
            AgentError: There is no such file, or the agent did not answer.
        """
        handle: int = self.call("guest-file-open", {"path": path, "mode": mode})
        return handle

    def read(self, handle: int, count: int) -> bytes:
        """Read up to ``count`` bytes from a file that :meth:`open` opened.

        Raises:
            AgentError: The file cannot be read, or has nothing to read now; or the agent did not answer.
        """
        answer = self.call("guest-file-read", {"handle": handle, "count": count})
        return base64.b64decode(answer["buf-b64"])

    def write(self, handle: int, data: bytes) -> None:
        """Write to a file that :meth:`open` opened.

        Raises:
            AgentError: The file cannot be written to, or the agent did not answer.
        """
        self.call("guest-file-write", {"handle": handle, "buf-b64": base64.b64encode(data).decode()})
        self.call("guest-file-flush", {"handle": handle})

    def read_text(self, path: str, *, limit: int = READ_LIMIT) -> str:
        """Return the text of a file's first ``limit`` bytes.

        Raises:
            AgentError: No such file, or the agent did not answer.
        """
        handle = self.call("guest-file-open", {"path": path, "mode": "r"})
        try:
            read = self.read(handle, limit)
        finally:
            self.call("guest-file-close", {"handle": handle})
        return read.decode("utf-8", "replace")


def _result(argv: Sequence[str], status: Mapping[str, Any]) -> CommandResult:
    """Translate an answer of guest-exec-status; signal N becomes exit code 128 + N, as in a shell."""
    return CommandResult(
        argv=tuple(argv),
        exit_code=128 + status["signal"] if "signal" in status else status["exitcode"],
        stdout_bytes=base64.b64decode(status.get("out-data", "")),
        stderr_bytes=base64.b64decode(status.get("err-data", "")),
    )
