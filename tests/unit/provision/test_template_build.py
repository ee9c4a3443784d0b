"""How the SSH connection of a machine is closed before the machine is frozen."""

from __future__ import annotations

import time
from types import SimpleNamespace
from typing import Any

import pytest

from pytest_kvm.errors import DomainFailed
from pytest_kvm.provision import template_build
from pytest_kvm.provision.template_build import log_out

HEAD = """\
Hub -1 (kvmctl):
  Protocol[State]    FD  Source Address  Port   Dest. Address  Port RecvQ SendQ
  TCP[HOST_FORWARD]  15       127.0.0.1 36855       10.0.2.15    22     0     0
"""


class Slirp:
    """A machine whose connections are in states that follow each other, and the monitor that shows them."""

    def __init__(self, *looks: dict[int, str]) -> None:
        self.looks = list(looks)
        self.closed_at = 0
        self.name = "web"
        self.shell = SimpleNamespace(close=self._close)
        self.domain = SimpleNamespace(hmp=self._hmp, clock=time.monotonic)

    def _close(self) -> None:
        self.closed_at = len(self.looks)

    def _hmp(self, _line: str) -> str:
        look = self.looks.pop(0) if len(self.looks) > 1 else self.looks[0]
        return HEAD + "".join(
            f"  TCP[{state}]  {file}       127.0.0.1 36855       10.0.2.15    22     0     0\n"
            for file, state in look.items()
        )


def closed(*looks: dict[int, str]) -> Slirp:
    """Log out of a machine, and return it."""
    slirp = Slirp(*looks)
    machine: Any = slirp
    log_out(machine)
    return slirp


def test_the_guest_has_closed_the_connection_too():
    machine = closed({100: "ESTABLISHED"}, {100: "FIN_WAIT_1"}, {100: "FIN_WAIT_2"}, {100: "TIME_WAIT"})
    assert machine.closed_at == 3
    assert machine.looks == [{100: "TIME_WAIT"}]


def test_a_connection_that_a_reset_has_cut_is_not_waited_for():
    lost = {99: "FIN_WAIT_1"}
    machine = closed({100: "ESTABLISHED", **lost}, {100: "FIN_WAIT_2", **lost}, lost)
    assert machine.looks == [lost]


def test_a_connection_that_stays_is_an_error(monkeypatch):
    monkeypatch.setattr(template_build, "_GOODBYE_WITHIN", 0.1)
    with pytest.raises(DomainFailed, match="sshd of web to close the connection.*in the state FIN_WAIT_2"):
        closed({100: "ESTABLISHED"}, {100: "FIN_WAIT_2"})
