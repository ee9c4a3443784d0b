"""QEMU by hand, doing what a clone and a savepoint do: the yardstick for what the plugin adds.

The same arguments as libvirt gives the clone of a template, with sockets of
our own in place of its descriptors; nothing of the guest is made its own.
"""

from __future__ import annotations

import json
import re
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

from bench.boot import listening_port, succeeds
from pytest_kvm.images.qemu_img import create_overlay
from pytest_kvm.machine.machine import Machine
from pytest_kvm.ssh.access import Access
from pytest_kvm.waiting import NotYet, wait_until

_PATIENCE = 60.0
_LOOK_EVERY = 0.003
_STATE = "state"
_RAM = re.compile(r'"mem-path": "([^"]+)/ram"')
_DROPPED = ("-add-fd", '{"qom-type":"secret"')
"""What is libvirt's own: descriptors of its log files, its secrets."""
_SOCKETS = {"charmonitor": "monitor", "charserial0": "serial", "charchannel0": "agent"}


class Talk:
    """Asks and answers in JSON, a line each: QMP and the guest agent's protocol."""

    def __init__(self, path: Path) -> None:
        self._socket = wait_until(
            lambda: _connected(path), describe=str(path), timeout=_PATIENCE, every=_LOOK_EVERY
        )
        self._lines = self._socket.makefile("rb")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Hang up."""
        self._lines.close()
        self._socket.close()

    def ask(
        self, execute: str, arguments: Mapping[str, Any] | None = None, *, file: int | None = None
    ) -> Any:  # noqa: ANN401 - JSON
        """Run a command, with an open file where it takes one, and return its value."""
        request = json.dumps({"execute": execute, "arguments": arguments or {}}).encode() + b"\n"
        socket.send_fds(self._socket, [request], [] if file is None else [file])
        while line := self._lines.readline():
            answer = json.loads(line)
            if "error" in answer:
                raise SystemExit(f"bench: {execute}: {answer['error']}")
            if "return" in answer:  # else an event, or the greeting
                return answer["return"]
        raise SystemExit(f"bench: QEMU hung up on {execute}")


@dataclass(frozen=True, kw_only=True)
class RawClone:
    """A clone made by hand, paused."""

    monitor: Talk
    agent: Talk
    access: Access

    def cont(self) -> None:
        """Let it run."""
        self.monitor.ask("cont")

    def hmp(self, line: str) -> None:
        """Run a command of the human monitor; it prints nothing unless it fails."""
        said = self.monitor.ask("human-monitor-command", {"command-line": line})
        if said:
            raise SystemExit(f"bench: {line}: {said}")

    def ping(self) -> None:
        """Return when the agent answers."""
        self.agent.ask("guest-ping")

    def ssh(self) -> None:
        """Run a command through OpenSSH."""
        program, *rest = self.access.ssh_argv()
        lax = ["StrictHostKeyChecking=no", "UserKnownHostsFile=/dev/null", "LogLevel=ERROR"]
        # The option given first is the one that counts (ssh_config(5)).
        options = [word for each in [*lax, "KexAlgorithms=curve25519-sha256"] for word in ("-o", each)]
        succeeds([program, *options, *rest, "true"])


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How libvirt starts a clone, read from one that runs."""

    argv: tuple[str, ...]
    folder: Path
    """Of the clone's own files."""
    template: Path
    access: Access

    @classmethod
    def of(cls, machine: Machine) -> Recipe:
        """Read it; the template must stay in use as long as the recipe is."""
        argv = Path(f"/proc/{machine.domain.pid}/cmdline").read_text().rstrip("\0").split("\0")
        found = next(filter(None, map(_RAM.search, argv)))
        return cls(
            argv=tuple(argv), folder=machine.folder, template=Path(found.group(1)), access=machine.access
        )

    @contextmanager
    def restored(self, folder: Path) -> Iterator[RawClone]:
        """Start a clone in an empty folder, and leave it paused."""
        with ExitStack() as stack:
            stack.callback(shutil.rmtree, folder)
            folder.mkdir()
            create_overlay(folder / "root.qcow2", backing=self.template / "root.qcow2")
            process = stack.enter_context(subprocess.Popen(self._argv(folder)))
            stack.callback(process.kill)
            monitor = stack.enter_context(Talk(folder / "monitor"))
            monitor.ask("qmp_capabilities")
            _load(monitor, self.template / _STATE)
            agent = stack.enter_context(Talk(folder / "agent"))
            access = replace(self.access, port=listening_port(process.pid))
            yield RawClone(monitor=monitor, agent=agent, access=access)

    def _argv(self, folder: Path) -> list[str]:
        """Return the arguments with our files for libvirt's."""
        kept: list[str] = []
        words = iter(self.argv)
        for word in words:
            value = next(words) if word in ("-add-fd", "-object") else ""
            if word.startswith(_DROPPED) or value.startswith(_DROPPED):
                continue
            kept += [_moved(each, self.folder, folder) for each in filter(None, (word, value))]
        return kept


def _moved(word: str, former: Path, folder: Path) -> str:
    chardev = re.match(r"socket,id=(\w+),fd=", word)
    if chardev:
        path = folder / _SOCKETS[chardev.group(1)]
        return f"socket,id={chardev.group(1)},path={path},server=on,wait=off"
    return word.replace(f"{former}/", f"{folder}/")


def _load(monitor: Talk, state: Path) -> None:
    capability = {"capability": "x-ignore-shared", "state": True}
    monitor.ask("migrate-set-capabilities", {"capabilities": [capability]})
    with state.open("rb") as source:
        monitor.ask("getfd", {"fdname": "state"}, file=source.fileno())
    monitor.ask("migrate-incoming", {"uri": "fd:state"})
    wait_until(lambda: _check_loaded(monitor), describe="the state", timeout=_PATIENCE, every=_LOOK_EVERY)
    # A savepoint has to hold the memory, too.
    monitor.ask("migrate-set-capabilities", {"capabilities": [capability | {"state": False}]})


def _check_loaded(monitor: Talk) -> None:
    status = monitor.ask("query-migrate").get("status")
    if status == "failed":
        raise SystemExit("bench: QEMU cannot load the template's state")
    if status != "completed":
        raise NotYet(status)


def _connected(path: Path) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX)
    try:
        connection.connect(str(path))
    except OSError as error:
        connection.close()
        raise NotYet(str(error)) from error
    return connection


def raw_times(recipe: Recipe, folder: Path) -> dict[str, float]:
    """Clone, resume and load by hand once, and return the seconds of each."""
    times: dict[str, float] = {}
    began = time.perf_counter()
    with recipe.restored(folder) as clone:
        clone.cont()
        clone.ping()
        times["clone to agent"] = time.perf_counter() - began
        clone.hmp("savevm bench")
        began = time.perf_counter()
        clone.hmp("loadvm bench")
        clone.ping()
        times["load to agent"] = time.perf_counter() - began
        began = time.perf_counter()
        clone.hmp("loadvm bench")
        clone.ssh()
        times["load to ssh"] = time.perf_counter() - began
    with recipe.restored(folder) as clone:
        began = time.perf_counter()
        clone.cont()
        clone.ping()
        times["resume to agent"] = time.perf_counter() - began
    began = time.perf_counter()
    with recipe.restored(folder) as clone:
        resumed = time.perf_counter()
        clone.cont()
        clone.ssh()
        times["clone to ssh"] = time.perf_counter() - began
        times["resume to ssh"] = time.perf_counter() - resumed
    return times
