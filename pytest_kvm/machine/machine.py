"""One running machine: the parts that the methods of :class:`~pytest_kvm.Guest` work with."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from pytest_kvm.errors import GuestGone
from pytest_kvm.host import run_folder
from pytest_kvm.hypervisor.protocol import Domain
from pytest_kvm.machine.carriers import Carriers
from pytest_kvm.machine.console import Console
from pytest_kvm.machine.hosts_file import HostsFile
from pytest_kvm.machine.kernel_watch import KernelWatch
from pytest_kvm.machine.port_forwards import Forwards
from pytest_kvm.settings import Timeouts
from pytest_kvm.ssh.access import Access

if TYPE_CHECKING:
    from pytest_kvm.machine.savepoints import Taken
    from pytest_kvm.ssh.shell import Shell


class OpenResource(Protocol):
    """Something between the guest and the host, such as a forwarded port; ``repr()`` names it."""

    def close(self) -> None:
        """Close it; do nothing if it is closed already."""
        ...


class OpenResources:
    """The open resources of one machine, besides commands.

    A savepoint is refused while there are any, because a restore would cut them off.
    """

    def __init__(self) -> None:
        self._listers: list[Callable[[], Iterable[OpenResource]]] = []

    def register(self, lister: Callable[[], Iterable[OpenResource]]) -> None:
        """Add a function that returns, whenever it is called, the open resources of one kind."""
        self._listers.append(lister)

    def all(self) -> list[OpenResource]:
        """Return all open resources."""
        return [resource for lister in self._listers for resource in lister()]


class Links(Protocol):
    """The links of one guest's cards to their segments."""

    def detach(self) -> None:
        """Let no frame from or to the guest pass; those that are on their way are lost.

        Raises:
            SwitchFailed: The switch has ended.
        """
        ...

    def attach(self, machine: Machine) -> None:
        """Let frames pass to and from a machine of the guest; what the machine has sent before is lost.

        Raises:
            DomainFailed: QEMU has ended.
            SwitchFailed: The switch has ended.
        """
        ...

    def drop_frames(self, machine: Machine) -> None:
        """Drop the frames that wait for a machine, whose links are detached; if it has any, it is paused.

        Raises:
            SnapshotFailed: QEMU cannot be made to drop them.
            SwitchFailed: The switch has ended.
        """
        ...


@dataclass(frozen=True, kw_only=True)
class Machine:
    """One guest's parts, put together by ``provision``."""

    name: str
    domain: Domain
    shell: Shell
    console: Console
    kernel: KernelWatch
    access: Access
    folder: Path
    """This guest's run files; removed with the guest."""
    links: Links
    timeouts: Timeouts
    """Already scaled for the accelerator."""
    log: logging.Logger
    """``pytest_kvm.<guest>``: everything this guest does."""
    phases: Mapping[str, float] = field(default_factory=dict[str, float])
    """Seconds from power on to each rung of the readiness ladder."""
    open_resources: OpenResources = field(default_factory=OpenResources)
    """What a test has open between host and guest, besides processes."""
    hosts_file: HostsFile = field(default_factory=HostsFile)
    """The names of other guests that the guest was told."""
    carriers: Carriers = field(default_factory=Carriers)
    """Which of the guest's cards on segments have a carrier."""
    savepoints: dict[str, Taken] = field(default_factory=dict[str, "Taken"])
    """The savepoints in the guest's disks, by name."""
    renewal_due: threading.Event = field(default_factory=threading.Event)
    """Set from the load of a savepoint until the guest, which has gone on, is renewed."""

    def check_alive(self) -> None:
        """Check that the guest has not ended.

        Raises:
            GuestGone: It has.
        """
        if not self.domain.alive():
            raise GuestGone(f"{self.name} has ended: {self.domain.end_reason()}")

    def check_folder(self) -> None:
        """Check that nobody has removed its files: QEMU has them open, but finds its sockets there no more.

        Raises:
            HostError: Somebody has.
        """
        if not self.folder.is_dir():
            raise run_folder.folder_gone(f"the folder of {self.name}, {self.folder},")

    @property
    def at_work(self) -> list[object]:
        """What a test has at work in the guest, and open between host and guest."""
        return [*self.shell.processes, *self.open_resources.all()]

    @cached_property
    def forwards(self) -> Forwards:
        """The guest's ports that are forwarded from the host."""
        forwards = Forwards(self.domain)
        self.open_resources.register(lambda: forwards.open)
        return forwards
