"""Fakes for the unit tests."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator

import pytest

from pytest_kvm.machine.boot import Boot, Phases
from pytest_kvm.machine.console_errors import ConsoleWatch
from pytest_kvm.machine.machine import Machine


@pytest.fixture
def boot(machine: Machine) -> Boot:
    return Boot(machine=machine, phases=Phases(machine.log), watch=ConsoleWatch(machine.console))


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
