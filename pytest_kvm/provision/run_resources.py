"""What all guests of a run share: run folder, libvirt connection, accelerator, time-outs, SSH key pair."""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Mapping
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Generic, Literal, TypeVar
from urllib.parse import urlsplit

from pytest_kvm.errors import GuestGone
from pytest_kvm.host.accelerator import choose_accelerator
from pytest_kvm.host.resources import cpus_available
from pytest_kvm.host.run_folder import held_run_folder
from pytest_kvm.host.ssh_keys import KeyPair, new_key_pair, write_private
from pytest_kvm.host.undo_notes import UndoNotes
from pytest_kvm.hypervisor.connect import open_hypervisor
from pytest_kvm.hypervisor.protocol import Hypervisor
from pytest_kvm.images import qemu_img
from pytest_kvm.provision.admission import Admission
from pytest_kvm.provision.boot_turns import BootTurns
from pytest_kvm.provision.failed_boots import FOLDER as FAILED_BOOTS
from pytest_kvm.provision.failed_boots import BootKeeping
from pytest_kvm.provision.leftovers import sweep_cache
from pytest_kvm.settings import TCG_FACTOR, Settings, Timeouts

if TYPE_CHECKING:
    from pytest_kvm.switch.client import Switch


_OVERHEAD_MIB = {"kvm": 64, "tcg": 256}
"""What QEMU takes beside its guest's memory: under TCG that is mostly translated code."""


@dataclass(frozen=True, kw_only=True)
class RunResources:
    """The resources that one run has opened on this host."""

    folder: Path
    """The run folder: locked and watched during the run, removed at its end."""
    hypervisor: Hypervisor
    accel: Literal["kvm", "tcg"]
    timeouts: Timeouts
    """Multiplied by the user's time-out factor, or by the accelerator's."""
    key: KeyPair
    """The run's own SSH key pair, for guests that boot cold; a clone has the key of its template."""
    key_file: Path
    switch: Lazy[Switch]
    """Passes frames between guests; its process is started when it is first used."""
    undo_notes: UndoNotes
    """Of what is made outside of the run folder."""
    admission: Admission
    """Has room on this host for guests."""
    boot_turns: BootTurns
    """Lets guests boot in turn."""
    failed_boots: BootKeeping | None
    """What is kept of boots that fail; None: nothing."""

    @property
    def is_system(self) -> bool:
        """Whether libvirt's system daemon runs the guests, under an account other than the user's."""
        return urlsplit(self.hypervisor.facts().uri).path == "/system"

    @property
    def session(self) -> str:
        """The run's id: its folder's name."""
        return self.folder.name


@contextmanager
def open_run_resources(
    settings: Settings,
    switch: Lazy[Switch],
    *,
    admission: Admission,
    token: str,
    about: Mapping[str, str],
) -> Generator[RunResources]:
    """Make the run's folder and connect to the hypervisor; undo both afterwards.

    Args:
        settings: The run's settings.
        switch: The run's switch.
        admission: Has room for the run's guests.
        token: The run's token.
        about: What ``pytest-kvm ps`` tells of the run.

    Raises:
        HostError: This host cannot run guests as the settings ask.
        ConnectionFailed: The connection to the hypervisor could not be opened.
    """
    chosen = choose_accelerator(settings.accel, cache_dir=settings.cache_dir)
    factor = settings.timeout_factor or (TCG_FACTOR if chosen.kind == "tcg" else 1.0)
    timeouts = settings.timeouts.scaled(factor)
    key = new_key_pair()
    qemu_img.check_installed()
    sweep_cache(settings)
    with held_run_folder(settings.run_dir, token=token, uri=settings.uri, **about) as folder:
        key_file = write_private(folder / "id_ed25519", key.private)
        opened = open_hypervisor(settings.uri, run_dir=folder, cache_dir=settings.cache_dir)
        with closing(opened) as hypervisor:
            hypervisor.facts()  # refuses versions that are too old
            yield RunResources(
                folder=folder,
                hypervisor=hypervisor,
                accel=chosen.kind,
                timeouts=timeouts,
                key=key,
                key_file=key_file,
                switch=switch,
                undo_notes=UndoNotes(folder),
                admission=admission,
                boot_turns=BootTurns(
                    settings.limits_folder, number=cpus_available(), timeout=timeouts.admission
                ),
                failed_boots=_boot_keeping(settings, folder),
            )


def qemu_overhead_mib(resources: RunResources | None) -> int:
    """Return how much memory (MiB) a QEMU takes beside its guest's.

    Args:
        resources: What the run has opened; None: nothing yet.
    """
    return _OVERHEAD_MIB["kvm" if resources is not None and resources.accel == "kvm" else "tcg"]


def _boot_keeping(settings: Settings, folder: Path) -> BootKeeping | None:
    if settings.keep_artifacts == "never":
        return None
    return BootKeeping(folder=folder / FAILED_BOOTS, dump=settings.dump)


T = TypeVar("T")


class Lazy(Generic[T]):
    """Opens a value when the first thread asks for it, and closes it once.

    Args:
        opener: Returns a context manager that yields the value.
    """

    def __init__(self, opener: Callable[[], AbstractContextManager[T]]) -> None:
        self._opener = opener
        self._lock = threading.Lock()
        self._stack = ExitStack()
        self._opened: list[T] = []
        """The value, if it is open."""
        self._is_closed = False

    def get(self) -> T:
        """Return the value; open it if it is not open.

        Raises:
            GuestGone: The run has ended: nobody would close the value any more.
            Exception: Whatever the opener raises; it is called again the next time.
        """
        with self._lock:
            if self._is_closed:
                raise GuestGone("the run has ended")
            if not self._opened:
                self._opened.append(self._stack.enter_context(self._opener()))
            return self._opened[0]

    def get_open(self) -> T | None:
        """Return the value if it is open already; None if it is not, or is being opened."""
        return next(iter(self._opened), None)

    def close(self) -> None:
        """Close the value, if it is open; it is not opened any more."""
        with self._lock:
            self._is_closed = True
            self._opened.clear()
            self._stack.close()
