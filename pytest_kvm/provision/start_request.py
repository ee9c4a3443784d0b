"""Start requests: what is known of a machine before its start, and what is undone when it is removed."""

from __future__ import annotations

import logging
import re
import threading
from collections.abc import Callable, Generator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace

from pytest_kvm.errors import GuestGone
from pytest_kvm.handles.segment import GuestNic
from pytest_kvm.host.run_records import MachineState
from pytest_kvm.images.image import Image
from pytest_kvm.machine.boot import Phases
from pytest_kvm.provision.room import Room
from pytest_kvm.render.domain_draft import DomainDraft
from pytest_kvm.spec.guest import GuestSpec

_OF_TEMPLATE = "~t"
_OF_SPARE = "+p"
_NOT_IN_NAMES = re.compile(r"[^A-Za-z0-9_.-]+")
_LONGEST_NAME = 32
"""Characters. With a place's number behind the name, a socket's path is still short enough for unix(7)."""


def clean_name(name: str) -> str:
    """Return what can be a guest's name of a text."""
    return _NOT_IN_NAMES.sub("-", name).strip("-.~")[:_LONGEST_NAME] or "guest"


@dataclass(frozen=True)
class Place:
    """Name of a machine's folder and, behind the run's id, of its domain.

    A guest can have several machines: one for its template, one after each
    reset that needs a new one, spare clones. No two machines of a run have the same place.
    """

    guest: str
    """The guest's part; no other guest of the run has it, not even a later one of the same name."""
    machine: str = ""
    """Tells the guest's machines apart; empty for the first one."""

    def __str__(self) -> str:
        return f"{self.guest}{self.machine}"

    @property
    def state_at_start(self) -> MachineState:
        """What the machine is when it is switched on, for :mod:`~pytest_kvm.host.run_records`."""
        if self.machine.endswith(_OF_TEMPLATE):
            return "template"
        return "spare" if self.machine.startswith(_OF_SPARE) else "starting"

    def of_template(self) -> Place:
        """Return the place of the machine that this machine's template is made of."""
        return replace(self, machine=f"{self.machine}{_OF_TEMPLATE}")

    def of_successor(self, number: int) -> Place:
        """Return the place of a machine that takes over after a reset."""
        return Place(self.guest, f"+{number}")

    def of_spare(self, number: int) -> Place:
        """Return the place of a machine that is started ahead of need."""
        return Place(self.guest, f"{_OF_SPARE}{number}")


@dataclass(frozen=True, kw_only=True)
class StartRequest:
    """One machine that is to be started for a guest."""

    spec: GuestSpec
    name: str
    """The guest's name in messages."""
    place: Place
    hostname: str
    image: Image
    domain: DomainDraft
    """Draft of the domain that all machines of the guest share."""
    packages_left: tuple[str, ...]
    """Packages that are not in the image: cloud-init installs them."""
    resets: bool
    """Whether the guest is reset between tests."""
    nics: tuple[GuestNic, ...]
    """The guest's cards on segments; empty for a template, which is on none."""
    tied_macs: Mapping[int, str]
    """MAC addresses that the template of these cards on segments has to have, too, by index in the spec's
    ``nics`` (:attr:`~pytest_kvm.spec.nic.Nic.is_tied_to_mac`)."""
    host_lines: Callable[[], list[str]]
    """Returns the lines of hosts(5) that name the guests on the same segments."""
    log: logging.Logger
    phases: Phases
    """Notes which rungs the boot has reached, and when."""
    on_step: Callable[[str], None]
    """Called before each step that is not a rung of the boot, with a phrase for people."""
    room: Room
    """What the machine has of this host."""
    teardown: Teardown
    """Gets the steps that remove the machine again."""

    @property
    def own_facts(self) -> tuple[object, ...]:
        """What clones of one template differ in: names, identity, and their cards on segments.

        It holds what JSON can hold.
        """
        spec = self.spec
        joined = ((nic, spec.nics[nic.index]) for nic in self.nics)
        cards = tuple(
            (
                (nic.index, nic.segment.name, nic.names, nic.mac, nic.addresses),
                (nic.segment.spec.mtu, nic.segment.spec.is_libvirt, nic.segment.spec.forward),
                (given.link, given.uses_dhcp),
            )
            for nic, given in joined
        )
        return (self.name, self.hostname, spec.identity, cards)

    def successor(self, number: int) -> StartRequest:
        """Return the request of a machine that takes over after a reset."""
        return replace(
            self, place=self.place.of_successor(number), phases=Phases(self.log), on_step=self.log.info
        )

    def spare(self, number: int, *, room: Room, teardown: Teardown) -> StartRequest:
        """Return the request of a machine that is started ahead of need.

        Args:
            number: Tells the guest's spare machines apart.
            room: What it has of this host.
            teardown: Gets the steps that remove it.
        """
        return replace(self, place=self.place.of_spare(number), room=room, teardown=teardown)


class Teardown:
    """One guest's exit stack; it refuses new entries once the guest is removed.

    A guest is started in a thread of its own, and another thread can remove it
    at any time. The removal undoes all that the start has set up by then, and
    the start can set up nothing more.

    Args:
        name: The guest's name.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._lock = threading.Lock()
        self._stack = ExitStack()
        self._is_removed = False

    @contextmanager
    def adding(self) -> Generator[ExitStack]:
        """Yield the stack for the length of a block; :meth:`close` waits for the block's end.

        Raises:
            GuestGone: The guest was removed before.
        """
        with self._lock:
            self.check()
            yield self._stack

    @contextmanager
    def attempting(self) -> Generator[ExitStack]:
        """Yield a new stack within the guest's, which is closed at once if the block raises.

        All that the block set up is undone then, so that another attempt may follow.

        Raises:
            GuestGone: As in :meth:`adding`.
        """
        with self.adding() as stack:
            undo = stack.enter_context(ExitStack())
            try:
                yield undo
            except BaseException:
                undo.close()
                raise

    @property
    def is_removed(self) -> bool:
        """Whether the guest is removed, or about to be."""
        return self._is_removed

    def check(self) -> None:
        """Make sure that the guest is still wanted.

        Raises:
            GuestGone: It was removed.
        """
        if self._is_removed:
            raise GuestGone(f"{self._name} was removed")

    def close(self) -> None:
        """Undo everything, last first; nothing can be added afterwards."""
        with self._lock:
            self._is_removed = True
            self._stack.close()
