"""The parts of a guest that is ready: what :class:`Guest`'s verbs act on."""

from __future__ import annotations

import logging
import shlex
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from pytest_kvm.handles.console import Console
from pytest_kvm.handles.forward import Forwards
from pytest_kvm.handles.live import LiveThings
from pytest_kvm.handles.shell import Shell
from pytest_kvm.hypervisor.protocol import Domain
from pytest_kvm.settings import Timeouts

if TYPE_CHECKING:
    from pytest_kvm.handles.renewal import Parked


@dataclass(frozen=True, kw_only=True)
class Access:
    """How to reach a guest by SSH: always loopback, always a pinned host key."""

    port: int
    key_file: Path
    """Private key in OpenSSH's format, mode 0600."""
    host_key: str
    """``ssh-ed25519 AAAA…``: the only host key that is accepted."""
    known_hosts: Path
    """The same key as a known_hosts file, for the command a person would type."""
    user: str = "root"
    host: str = "127.0.0.1"

    def ssh_argv(self) -> list[str]:
        """Return the ``ssh`` command that logs in, free of the caller's own configuration."""
        return [
            "ssh",
            *("-F", "none"),
            *("-i", str(self.key_file)),
            *("-p", str(self.port)),
            *("-o", "IdentitiesOnly=yes"),
            *("-o", f"UserKnownHostsFile={self.known_hosts}"),
            *("-o", "StrictHostKeyChecking=yes"),
            f"{self.user}@{self.host}",
        ]

    def ssh_command(self) -> str:
        """Return the same as a line to paste into a terminal."""
        return shlex.join(self.ssh_argv())


@dataclass(frozen=True, kw_only=True)
class Machine:
    """One guest's parts, put together by ``provision``."""

    name: str
    domain: Domain
    shell: Shell
    console: Console
    access: Access
    folder: Path
    """This guest's run files; removed with the guest."""
    timeouts: Timeouts
    """Already scaled for the accelerator."""
    log: logging.Logger
    """``pytest_kvm.<guest>``: everything this guest does."""
    phases: Mapping[str, float] = field(default_factory=dict[str, float])
    """Seconds from power on to each rung of the readiness ladder."""
    live: LiveThings = field(default_factory=LiveThings)
    """What of the test is at work in it, besides processes."""
    savepoints: dict[str, Parked | None] = field(default_factory=dict[str, "Parked | None"])
    """Those in its disks, by name, each with the program that waits there to renew the guest."""
    renewal_due: threading.Event = field(default_factory=threading.Event)
    """Set while it is paused where it was put back to, and has not been renewed."""

    @cached_property
    def forwards(self) -> Forwards:
        """Its ports on the host."""
        forwards = Forwards(self.domain)
        self.live.ask(lambda: forwards.open)
        return forwards
