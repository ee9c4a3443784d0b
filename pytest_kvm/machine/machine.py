"""One running machine: its parts, which the verbs of :class:`~pytest_kvm.Guest` act on."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from pytest_kvm.hypervisor.protocol import Domain
from pytest_kvm.machine.console import Console
from pytest_kvm.machine.port_forwards import Forwards
from pytest_kvm.settings import Timeouts
from pytest_kvm.ssh.access import Access

if TYPE_CHECKING:
    from pytest_kvm.machine.renewal import Prestarted
    from pytest_kvm.ssh.shell import Shell


class OpenResource(Protocol):
    """Something with an end in the guest and one on the host, a forwarded port; ``repr()`` names it."""

    def close(self) -> None:
        """Close it; nothing happens if it is closed."""
        ...


class OpenResources:
    """What is open between one machine and the host, besides commands.

    A savepoint is refused while anything is: it would be cut off.
    """

    def __init__(self) -> None:
        self._listers: list[Callable[[], Iterable[OpenResource]]] = []

    def register(self, lister: Callable[[], Iterable[OpenResource]]) -> None:
        """Add a function that returns, whenever it is called, the open resources of one kind."""
        self._listers.append(lister)

    def all(self) -> list[OpenResource]:
        """Return what is open."""
        return [resource for lister in self._listers for resource in lister()]


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
    open_resources: OpenResources = field(default_factory=OpenResources)
    """What a test has open into it, besides processes."""
    savepoints: dict[str, Prestarted | None] = field(default_factory=dict[str, "Prestarted | None"])
    """Those in its disks, by name, each with the program that waits there to renew the guest."""
    renewal_due: threading.Event = field(default_factory=threading.Event)
    """Set while it is paused where it was put back to, and has not been renewed."""

    @cached_property
    def forwards(self) -> Forwards:
        """Its ports on the host."""
        forwards = Forwards(self.domain)
        self.open_resources.register(lambda: forwards.open)
        return forwards
