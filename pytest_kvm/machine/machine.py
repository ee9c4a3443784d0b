"""The parts of a guest that is ready: what :class:`Guest`'s verbs act on."""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from pytest_kvm.hypervisor.protocol import Domain
from pytest_kvm.machine.console import Console
from pytest_kvm.machine.live import LiveThings
from pytest_kvm.machine.port_forwards import Forwards
from pytest_kvm.settings import Timeouts
from pytest_kvm.ssh.access import Access

if TYPE_CHECKING:
    from pytest_kvm.machine.renewal import Parked
    from pytest_kvm.ssh.shell import Shell


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
