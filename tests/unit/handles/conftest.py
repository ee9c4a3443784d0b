"""Fakes for the handles' unit tests."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pytest_kvm.handles.climb import Climb
from pytest_kvm.handles.diagnosis import ConsoleWatch
from pytest_kvm.handles.machine import Machine
from pytest_kvm.handles.phases import Phases
from tests.fakes import FakeDomain, FakeShell, fake_machine


@pytest.fixture
def domain() -> FakeDomain:
    return FakeDomain()


@pytest.fixture
def shell() -> Iterator[FakeShell]:
    shell = FakeShell()
    yield shell
    shell.close()


@pytest.fixture
def machine(tmp_path: Path, domain: FakeDomain, shell: FakeShell) -> Machine:
    return fake_machine(tmp_path, domain=domain, shell=shell)


@pytest.fixture
def printed(machine: Machine) -> Callable[[str | bytes], None]:
    """Let the guest print on its console."""

    def append(text: str | bytes) -> None:
        with machine.console.log.open("ab") as log:
            log.write(text if isinstance(text, bytes) else text.encode())

    return append


@pytest.fixture
def climb(machine: Machine) -> Climb:
    return Climb(machine=machine, phases=Phases(machine.log), watch=ConsoleWatch(machine.console))


@pytest.fixture
def sshd() -> Iterator[int]:
    """Send a banner to whoever connects."""
    server = socket.create_server(("127.0.0.1", 0))
    lines: list[socket.socket] = []

    def serve() -> None:
        while True:
            try:
                line, _ = server.accept()
            except OSError:
                return
            lines.append(line)
            line.sendall(b"SSH-2.0-x\r\n")

    thread = threading.Thread(target=serve)
    thread.start()
    yield server.getsockname()[1]
    server.shutdown(socket.SHUT_RDWR)
    server.close()
    thread.join()
    for line in lines:
        line.close()
