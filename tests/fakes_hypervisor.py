"""A hypervisor without libvirt, kept honest by tests/libvirt/test_compliance.py.

Strict: a monitor or agent command that a test has not prepared is an error.
"""

from __future__ import annotations

import threading
import time
import uuid
import xml.etree.ElementTree as ET
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from pytest_kvm.errors import AgentError, DomainFailed, NetworkFailed
from pytest_kvm.hypervisor.protocol import CardFrames, Domain, DomainState, HostFacts

SCREEN = b"\x89PNG\r\n\x1a\n"

Answers = Mapping[str, Any]
"""Command names and what they return."""


class FakeDomain:
    """A domain that runs until it is told to end."""

    def __init__(self, xml: str, *, paused: bool, qmp: Answers, agent: Answers) -> None:
        root = ET.fromstring(xml)
        self.name = root.findtext("name", "")
        self.uuid = root.findtext("uuid") or str(uuid.uuid4())
        self.pid: int | None = None
        self.log: Path | None = None
        self.held_up = 0.0
        """Seconds for which the host had no processor for it."""
        self.done: list[str] = []
        """What was done to it, in order."""
        self._xml = xml
        self._state = DomainState.PAUSED if paused else DomainState.RUNNING
        self.asked: list[tuple[str, Mapping[str, Any] | None]] = []
        """The monitor's commands with their arguments."""
        self.frames: dict[str, CardFrames] = {}
        """What has passed the host's end of a card, by its name."""
        self._qmp = qmp
        self._agent = agent
        self._ended = threading.Event()
        self._reason = ""
        self._callbacks: list[Callable[[str], None]] = []

    def end(self, reason: str) -> None:
        """Let it end as if by itself."""
        if not self._ended.is_set():
            self._reason = reason
            self._state = DomainState.SHUTOFF
            self._ended.set()
            for callback in self._callbacks:
                callback(reason)

    def clock(self) -> float:
        return time.monotonic() - self.held_up

    def state(self) -> DomainState:
        return self._state

    def xml(self) -> str:
        return self._xml

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
        """Nothing resets it."""

    def wait_end(self, timeout: float) -> bool:
        return self._ended.wait(timeout)

    def resume(self) -> None:
        self._living("resume")
        self._state = DomainState.RUNNING

    def suspend(self) -> None:
        self._living("suspend")
        self._state = DomainState.PAUSED

    def reset(self) -> None:
        self._living("reset")

    def shutdown(self) -> None:
        self._living("shutdown")
        self.end("guest shutdown")

    def destroy(self) -> None:
        self.done.append("destroy")
        self.end("destroyed")

    def inject_nmi(self) -> None:
        self._living("inject_nmi")

    def send_keys(self, keycodes: list[int], *, hold_ms: int = 50) -> None:
        self._living(f"send_keys {keycodes} {hold_ms}")

    def screenshot(self) -> bytes:
        self._living("screenshot")
        return SCREEN

    def qmp(self, command: str, arguments: Mapping[str, Any] | None = None) -> Any:
        self._living(f"qmp {command}")
        self.asked.append((command, arguments))
        if command not in self._qmp:
            raise DomainFailed(f"QEMU of {self.name} refused {command}: the test prepared no answer")
        return self._qmp[command]

    def hmp(self, line: str) -> str:
        return str(self.qmp(f"hmp:{line}"))

    def card_frames(self, device: str) -> CardFrames:
        return self.frames.get(device, CardFrames())

    def save_state(self, target: BinaryIO) -> None:
        target.write(b"state of " + self.name.encode())

    def load_state(self, source: BinaryIO) -> None:
        self.loaded = source.read()

    def dump_memory(self, target: Path) -> None:
        target.write_bytes(b"memory of " + self.name.encode())

    def take_snapshot(self, name: str) -> None:
        self._living(f"take {name}")

    def check_snapshot(self, name: str) -> None:
        self._living(f"check {name}")

    def load_snapshot(self, name: str) -> None:
        self._living(f"load {name}")

    def drop_snapshot(self, name: str) -> None:
        self._living(f"drop {name}")

    def save_libvirt_snapshot(self, name: str) -> None:
        self._living(f"save_libvirt_snapshot {name}")

    def agent(self, command: str, arguments: Mapping[str, Any] | None = None, *, timeout: float) -> Any:
        self._living(f"agent {command}")
        if command not in self._agent:
            raise AgentError(f"the guest agent of {self.name} refused {command}: the test prepared no answer")
        return self._agent[command]

    def _living(self, what: str) -> None:
        if not self.alive():
            raise DomainFailed(f"{self.name} has ended: {self._reason}")
        self.done.append(what)


class FakeHypervisor:
    """A connection whose domains are :class:`FakeDomain`."""

    def __init__(self, *, qmp: Answers | None = None, agent: Answers | None = None) -> None:
        self.created: list[FakeDomain] = []
        self.networks: list[str] = []
        self.network_failures: list[NetworkFailed] = []
        """Raised by the next attempts to make a network."""
        self.closed = False
        self._qmp = qmp or {}
        self._agent = agent or {}

    def facts(self) -> HostFacts:
        return HostFacts(
            uri="fake:///default",
            hypervisor_version="7.2.0",
            library_version="9.0.0",
            emulator="/usr/bin/qemu-system-x86_64",
            kvm=False,
            uefi=False,
        )

    def create(self, xml: str, *, paused: bool = False) -> FakeDomain:
        try:
            domain = FakeDomain(xml, paused=paused, qmp=self._qmp, agent=self._agent)
        except ET.ParseError as problem:
            raise DomainFailed(f"the domain's XML does not parse: {problem}", details=xml) from None
        if not domain.name:
            raise DomainFailed("the domain's XML has no <name>", details=xml)
        if domain.name in {other.name for other in self.domains()}:
            raise DomainFailed(f"a domain named {domain.name} runs already on this connection")
        self.created.append(domain)
        return domain

    def create_from_snapshot(self, xml: str, *, snapshot: str, paused: bool = False) -> FakeDomain:
        domain = self.create(xml, paused=paused)
        domain.done.append(f"revived from {snapshot}")
        return domain

    def create_network(self, xml: str) -> None:
        if self.network_failures:
            raise self.network_failures.pop(0)
        self.networks.append(xml)

    def remove_network(self, uuid: str) -> None:
        self.networks = [xml for xml in self.networks if uuid not in xml]

    def domains(self) -> list[Domain]:
        return [domain for domain in self.created if domain.alive()]

    def close(self) -> None:
        self.closed = True
