"""Strict fakes: what a test has not prepared is an error, not a silent success."""

from __future__ import annotations

import base64
import logging
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, cast

from pytest_kvm.errors import AgentError, DomainFailed, GuestGone, SavepointRefused
from pytest_kvm.hypervisor.protocol import CardFrames, DomainState
from pytest_kvm.machine.console import Console
from pytest_kvm.machine.kernel_watch import KernelWatch
from pytest_kvm.machine.machine import Machine
from pytest_kvm.results import CommandResult
from pytest_kvm.settings import Timeouts
from pytest_kvm.ssh.access import Access

if TYPE_CHECKING:
    from pytest_kvm.hypervisor.protocol import Domain
    from pytest_kvm.ssh.command_line import Command
    from pytest_kvm.ssh.output import Channel
    from pytest_kvm.ssh.process import CommandContext, Process
    from pytest_kvm.ssh.shell import Shell

AgentReply = Callable[[Mapping[str, Any]], Any]


class FakeDomain:
    """A domain that runs until a test ends it."""

    def __init__(self, name: str = "web") -> None:
        self.name = name
        self.uuid = "00000000-0000-4000-8000-000000000001"
        self.pid: int | None = 4711
        self.held_up = 0.0
        """Seconds for which the host had no processor for it."""
        self.done: list[str] = []
        """What was done to it, in order."""
        self.picture = b""
        self.has_no_network = False
        self.devices_changed = False
        """Whether no savepoint can be loaded."""
        self.agent_replies: dict[str, AgentReply] = {}
        """Replies by command; a command that is not here means: no agent."""
        self.log: Path | None = None
        self.on_shutdown: Callable[[], None] = lambda: None
        self.when_reset: list[Callable[[], None]] = []
        self._state = DomainState.RUNNING
        self._reason = ""
        self._ended = threading.Event()
        self._callbacks: list[Callable[[str], None]] = []

    def end(self, reason: str) -> None:
        """Let QEMU be gone."""
        self._reason, self._state = reason, DomainState.SHUTOFF
        self._ended.set()
        while self._callbacks:
            self._callbacks.pop()(reason)

    def clock(self) -> float:
        return time.monotonic() - self.held_up

    def state(self) -> DomainState:
        return self._state

    def xml(self) -> str:
        return f"<domain><name>{self.name}</name></domain>"

    def alive(self) -> bool:
        return not self._ended.is_set()

    def end_reason(self) -> str:
        return self._reason

    def on_end(self, callback: Callable[[str], None]) -> None:
        if self.alive():
            self._callbacks.append(callback)
        else:
            callback(self._reason)

    def on_reset(self, callback: Callable[[], None]) -> None:
        self.when_reset.append(callback)

    def wait_end(self, timeout: float) -> bool:
        return self._ended.wait(timeout)

    def resume(self) -> None:
        if self._state is not DomainState.PAUSED:
            raise DomainFailed(f"{self.name} cannot be resumed: it is {self._state.name.lower()}")
        self._state = DomainState.RUNNING
        self.done.append("resume")

    def suspend(self) -> None:
        if not self.alive():
            raise DomainFailed(f"{self.name} cannot be suspended: it has ended")
        self._state = DomainState.PAUSED
        self.done.append("suspend")

    def reset(self) -> None:
        self.done.append("reset")
        for callback in self.when_reset:
            callback()

    def shutdown(self) -> None:
        self.done.append("shutdown")
        self.on_shutdown()

    def destroy(self) -> None:
        self.done.append("destroy")
        self.end("destroyed")

    def inject_nmi(self) -> None:
        self.done.append("nmi")

    def send_keys(self, keycodes: list[int], *, hold_ms: int = 50) -> None:
        self.done.append(f"keys {keycodes}")

    def screenshot(self) -> bytes:
        return self.picture

    def qmp(self, command: str, arguments: Mapping[str, Any] | None = None) -> Any:
        if command == "query-rx-filter":
            return [{"name": (arguments or {})["name"], "promiscuous": self.has_no_network}]
        raise AssertionError(f"no test prepared the QMP command {command}")

    def hmp(self, line: str) -> str:
        raise AssertionError(f"no test prepared the monitor line {line!r}")

    def card_frames(self, device: str) -> CardFrames:
        return CardFrames()

    def save_state(self, target: BinaryIO) -> None:
        target.write(b"state of " + self.name.encode())

    def load_state(self, source: BinaryIO) -> None:
        self.loaded = source.read()

    def dump_memory(self, target: Path) -> None:
        target.write_bytes(b"memory of " + self.name.encode())

    def take_snapshot(self, name: str) -> None:
        self.done.append(f"take {name}")

    def check_snapshot(self, name: str) -> None:
        if self.devices_changed:
            raise SavepointRefused(f"{self.name}: cannot go back to {name}")

    def load_snapshot(self, name: str) -> None:
        self.done.append(f"load {name}")
        self._state = DomainState.PAUSED

    def drop_snapshot(self, name: str) -> None:
        self.done.append(f"drop {name}")

    def save_libvirt_snapshot(self, name: str) -> None:
        self.done.append(f"save {name}")

    def agent(self, command: str, arguments: Mapping[str, Any] | None = None, *, timeout: float) -> Any:
        reply = self.agent_replies.get(command)
        if reply is None:
            raise AgentError(f"{self.name}: the guest agent is not connected")
        return reply(arguments or {})

    def agent_runs(self, outputs: Mapping[str, str | list[str]]) -> None:
        """Let the agent run programs: command line → standard output, or one per call."""
        ended: dict[int, str] = {}

        def guest_exec(arguments: Mapping[str, Any]) -> dict[str, int]:
            line = " ".join([arguments["path"], *arguments["arg"]])
            output = outputs[line]
            pid = len(ended) + 1
            ended[pid] = output if isinstance(output, str) else output.pop(0)
            return {"pid": pid}

        def status(arguments: Mapping[str, Any]) -> dict[str, Any]:
            data = base64.b64encode(ended[arguments["pid"]].encode()).decode()
            return {"exited": True, "exitcode": 0, "out-data": data}

        self.agent_replies |= {"guest-exec": guest_exec, "guest-exec-status": status}

    def agent_has_file(self, path: str, text: str) -> None:
        """Let the agent read one file."""

        def opened(arguments: Mapping[str, Any]) -> int:
            if arguments["path"] != path:
                raise AgentError(f"failed to open file '{arguments['path']}'")
            return 7

        data = base64.b64encode(text.encode()).decode()
        self.agent_replies |= {
            "guest-file-open": opened,
            "guest-file-read": lambda _arguments: {"count": len(text), "buf-b64": data, "eof": True},
            "guest-file-close": lambda _arguments: {},
        }


Answer = CommandResult | BaseException | Callable[[], CommandResult]


@dataclass
class FakeShell:
    """A shell that knows only the commands it was told of.

    ``expect`` takes a part of the command line; the first that fits answers.
    An answer that is a list is used up one by one.
    """

    connected: bool = False
    processes: tuple[Process, ...] = ()
    logins: list[BaseException | None] = field(default_factory=list[BaseException | None])
    """What each :meth:`connect` raises; None lets it succeed, as does an empty list."""
    ran: list[str] = field(default_factory=list[str])
    closed: threading.Event = field(default_factory=threading.Event)
    _line: socket.socket | None = None
    _answers: list[tuple[str, list[Answer]]] = field(default_factory=list[tuple[str, list[Answer]]])

    def expect(self, part: str, *answers: Answer | str) -> None:
        """Answer commands that contain ``part``; the last answer stays."""
        self._answers.append((part, [output(each) if isinstance(each, str) else each for each in answers]))

    def connect(self, sock: socket.socket | None = None) -> None:
        outcome = self.logins.pop(0) if self.logins else None
        if outcome is not None:
            raise outcome
        self._line = sock
        self.connected = True

    def close(self) -> None:
        self.connected = False
        self.closed.set()
        if self._line is not None:
            self._line.close()

    def hang(self) -> CommandResult:
        """Answer of a command that ends only when the connection is dropped."""
        if not self.closed.wait(20):
            raise AssertionError("nobody closed the connection of a command that hangs")
        raise GuestGone("the connection was dropped")

    def run(
        self,
        command: Command,
        *,
        input: str | bytes | None = None,  # noqa: A002
        env: Mapping[str, str] | None = None,
        cwd: str | None = None,
        user: str | None = None,
        timeout: float | None = None,
        check: bool = True,
    ) -> CommandResult:
        line = command if isinstance(command, str) else " ".join(command)
        self.ran.append(line)
        for part, answers in self._answers:
            if part in line:
                answer = answers.pop(0) if len(answers) > 1 else answers[0]
                if isinstance(answer, BaseException):
                    raise answer
                result = answer() if callable(answer) else answer
                return result.check() if check else result
        raise AssertionError(f"no test prepared the command {line!r}")

    def start(
        self,
        command: Command,
        *,
        env: Mapping[str, str] | None = None,
        cwd: str | None = None,
        user: str | None = None,
    ) -> Process:
        raise AssertionError(f"no test prepared the background command {command!r}")

    def channel(self, command: Command, *, user: str | None = None) -> tuple[Channel, CommandContext]:
        raise AssertionError(f"no test prepared the transfer {command!r}")


def output(text: str, *, exit_code: int = 0, stderr: str = "") -> CommandResult:
    """Return the result of a command that printed ``text``."""
    return CommandResult(
        argv="fake", exit_code=exit_code, stdout_bytes=text.encode(), stderr_bytes=stderr.encode()
    )


class FakeLinks:
    """A guest's links, each step of which is written into a list.

    Args:
        done: The list.
    """

    def __init__(self, done: list[str]) -> None:
        self._done = done

    def detach(self) -> None:
        self._done.append("detach")

    def attach(self, machine: Machine) -> None:
        del machine
        self._done.append("attach")

    def drop_frames(self, machine: Machine) -> None:
        del machine
        self._done.append("drop frames")


def fake_machine(
    folder: Path, *, domain: FakeDomain, shell: FakeShell, port: int = 1, timeouts: Timeouts | None = None
) -> Machine:
    """Return a machine of fakes whose console is a file that the test writes."""
    real_domain: Domain = domain  # the type checker compares fake and protocol here
    (folder / "console.log").touch()
    console = Console(folder / "console.log", None, ended=domain.end_reason, clock=domain.clock)
    return Machine(
        name=domain.name,
        domain=real_domain,
        shell=cast("Shell", shell),
        console=console,
        kernel=KernelWatch(console, real_domain, patience=1.0),
        access=Access(
            port=port, key_file=folder / "key", host_key="ssh-ed25519 AAAA", known_hosts=folder / "kh"
        ),
        folder=folder,
        links=FakeLinks(domain.done),
        timeouts=timeouts or Timeouts(),
        log=logging.getLogger(f"pytest_kvm.{domain.name}"),
    )


class LocalShell(FakeShell):
    """A shell whose commands really run, on this machine: for scripts meant for a guest.

    Args:
        programs: Name → shell script, found before the machine's own programs.
        folder: Where the programs are written.
    """

    def __init__(self, programs: Mapping[str, str], *, folder: Path) -> None:
        super().__init__(connected=True)
        folder.mkdir(exist_ok=True)
        for name, script in programs.items():
            (folder / name).write_text(f"#!/bin/sh\n{script}\n")
            (folder / name).chmod(0o755)
        self._path = f"{folder}:/usr/sbin:/usr/bin:/sbin:/bin"

    def run(
        self,
        command: Command,
        *,
        input: str | bytes | None = None,  # noqa: A002
        env: Mapping[str, str] | None = None,
        cwd: str | None = None,
        user: str | None = None,
        timeout: float | None = None,
        check: bool = True,
    ) -> CommandResult:
        argv = ["sh", "-c", command] if isinstance(command, str) else list(command)
        done = subprocess.run(  # noqa: PLW1510 - checked by the result itself
            argv,
            input=input.encode() if isinstance(input, str) else input or b"",
            env={"PATH": self._path, **(env or {})},
            cwd=cwd,
            timeout=timeout,
            capture_output=True,
        )
        result = output(done.stdout.decode(), exit_code=done.returncode, stderr=done.stderr.decode())
        return result.check() if check else result
