"""What one run stands on: its folder, its connection, its accelerator, its key."""

from __future__ import annotations

import threading
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

from pytest_kvm.host.accelerator import accelerator
from pytest_kvm.host.keys import KeyPair, new_key_pair, write_private
from pytest_kvm.host.paths import held_run_folder
from pytest_kvm.hypervisor.connect import open_hypervisor
from pytest_kvm.hypervisor.protocol import Hypervisor
from pytest_kvm.settings import TCG_FACTOR, Settings, Timeouts


@dataclass(frozen=True, kw_only=True)
class Host:
    """This run's place on this machine."""

    folder: Path
    """Locked and watched while the run lives, removed with it."""
    hypervisor: Hypervisor
    accel: Literal["kvm", "tcg"]
    timeouts: Timeouts
    """Scaled for the accelerator."""
    key: KeyPair
    """The run's own: every guest lets it in."""
    key_file: Path

    @property
    def is_system(self) -> bool:
        """Whether a system daemon runs the guests, under an account that is not ours."""
        return urlsplit(self.hypervisor.facts().uri).path == "/system"

    @property
    def session(self) -> str:
        """The run's id."""
        return self.folder.name


class LazyHost:
    """Makes the run's :class:`Host` when the first guest wants it, from any thread."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._lock = threading.Lock()
        self._stack = ExitStack()
        self._host: Host | None = None

    def get(self) -> Host:
        """Return the host.

        Raises:
            HostError: This machine cannot run guests as the settings want it.
            ConnectionFailed: The hypervisor did not open.
        """
        with self._lock:
            if self._host is None:
                with ExitStack() as opening:
                    self._host = _opened(self._settings, opening)
                    self._stack = opening.pop_all()
            return self._host

    def close(self) -> None:
        """Close the connection and remove the folder."""
        with self._lock:
            self._host = None
            self._stack.close()


def _opened(settings: Settings, stack: ExitStack) -> Host:
    chosen = accelerator(settings.accel, cache_dir=settings.cache_dir)
    folder = stack.enter_context(held_run_folder(settings.run_dir))
    hypervisor = open_hypervisor(settings.uri, run_dir=folder, cache_dir=settings.cache_dir)
    stack.callback(hypervisor.close)
    key = new_key_pair()
    factor = settings.timeout_factor or (TCG_FACTOR if chosen.kind == "tcg" else 1.0)
    return Host(
        folder=folder,
        hypervisor=hypervisor,
        accel=chosen.kind,
        timeouts=settings.timeouts.scaled(factor),
        key=key,
        key_file=write_private(folder / "id_ed25519", key.private),
    )
