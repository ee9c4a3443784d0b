"""The boot cache: templates by key, shared by every run of this user.

:mod:`pytest_kvm.boot_cache.layout` describes its files on disk.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

from pytest_kvm.boot_cache import ram_file, template_files
from pytest_kvm.boot_cache.inventory import Inventory
from pytest_kvm.boot_cache.layout import Layout
from pytest_kvm.boot_cache.template import Building, Template
from pytest_kvm.boot_cache.template_files import Damage, TemplateManifest
from pytest_kvm.errors import NoCapacity
from pytest_kvm.host import locks
from pytest_kvm.host.disk_space import full_disk_in_words, why_no_space
from pytest_kvm.host.resources import disk_free_mib
from pytest_kvm.settings import RamPlace, Settings

OnDiscard = Callable[[str], None]
"""Called with the reason why a template was dropped."""

BUILD_TIMEOUT = 3600.0
"""Seconds one process waits for another that makes the same template."""

_KEY = re.compile(r"[0-9a-f]{8,128}")
_MIB = 1024 * 1024
_NO_ROOM = "no room for a template"
_RESOLUTION = "remove some with `pytest-kvm cache gc`, or choose another disk with --kvm-cache-dir"
_log = logging.getLogger("pytest_kvm.boot_cache")


class TemplateStore:
    """Finds templates for clones, and makes and drops templates.

    Args:
        layout: The folders that the templates are in.
        cap: Bytes that all templates may take up together.
        ram_place: Where the RAM files of new templates are written.
    """

    def __init__(self, layout: Layout, *, cap: int, ram_place: RamPlace = "disk") -> None:
        self._layout = layout
        self._inventory = Inventory(layout)
        self._cap = cap
        self._ram_place: RamPlace = ram_place

    @classmethod
    def of(cls, settings: Settings) -> TemplateStore:
        """Return the store of a run's settings."""
        return cls(Layout.of(settings), cap=settings.cache_size, ram_place=settings.cache_ram)

    def claim(self, key: str, *, on_discard: OnDiscard | None = None) -> Template | None:
        """Return the template of a key, in use until it is closed; None when there is none.

        A template that is damaged or of another format is dropped, with a
        warning in the log, and None is returned.

        Args:
            key: Hexadecimal digits.
            on_discard: Called with the reason if the template was dropped.
        """
        held = self._layout.find_locked(_check_key(key))
        if held is None:
            return None
        folder, lock = held
        try:
            manifest = template_files.read_checked(folder, key)
        except Damage as damage:
            lock.release()
            self._drop(key, folder, reason=str(damage))
            if on_discard is not None:
                on_discard(str(damage))
            return None
        except BaseException:
            lock.release()
            raise
        lock.touch()
        return self._template(folder, manifest, lock)

    @contextmanager
    def building(
        self, key: str, *, ram_mib: int = 0, disk_mib: int = 0, on_wait: locks.OnWait | None = None
    ) -> Iterator[Building]:
        """Hold the right to make the template of a key, and give a folder to make it in.

        A caller that had to wait should :meth:`claim` first, because another
        process has probably made the template. At the end the folder is removed
        unless it was published. Leftovers of a killed process are removed at
        the beginning.

        Args:
            key: The key of the new template, which replaces an existing one.
            ram_mib: Size that the RAM file may have, in MiB. Room is made for
                it, because QEMU dies if the disk has no room for a file that
                it has mapped.
            disk_mib: What the other files take at least, in MiB.
            on_wait: Called with who holds the right, if another process does.

        Raises:
            HostError: The boot cache cannot be written to.
            NoCapacity: The other process did not finish in time, or there is no room for the files.
            OSError: The disk is full; :meth:`disk_full_as_no_capacity` says so in words.
        """
        lock = self._layout.build_lock(_check_key(key))
        self._layout.make()
        describe = f"making template {key[:12]}"
        with locks.exclusive(lock, describe=describe, timeout=BUILD_TIMEOUT, on_wait=on_wait):
            folder, held = self._layout.new(key)
            building: Building | None = None
            try:
                building = Building(
                    key,
                    folder=folder,
                    ram=self._place_ram_file(folder, ram_mib, disk_mib=disk_mib),
                    enter=lambda manifest: self._enter(manifest, folder, held),
                )
                yield building
            finally:
                if building is None or not building.is_published:
                    self._layout.remove_unpublished(held)

    def discard(self, key: str, *, reason: str) -> None:
        """Drop the template of a key, with a warning; the next run makes it again.

        Its files stay until the last user closes the template.

        Args:
            key: The template's key.
            reason: For the log ("QEMU refused its state").
        """
        folder = self._layout.find(_check_key(key))
        if folder is not None:
            self._drop(key, folder, reason=reason)

    def _place_ram_file(self, folder: Path, ram_mib: int, *, disk_mib: int) -> ram_file.RamFilePlace:
        placed = ram_file.choose_place(folder, self._ram_place, mib=ram_mib)
        needed = disk_mib if placed.path.is_symlink() else disk_mib + ram_mib
        if (missing := needed - disk_free_mib(folder)) > 0:
            self._inventory.free(missing * _MIB)
        if why := why_no_space(self._layout.folder, mib=needed):
            raise NoCapacity(f"{_NO_ROOM}: {why}", resolution=_RESOLUTION)
        return placed

    def _enter(self, manifest: TemplateManifest, folder: Path, held: locks.HeldLock) -> Template:
        """Let the key lead to a finished entry; then remove old templates until the rest fits the cap."""
        with self._layout.index():
            self._layout.link(manifest.key, folder)
            held.share()  # nobody can lock it exclusively meanwhile: that needs the index
            held.touch()
        self._inventory.collect(cap=self._cap)
        return self._template(folder, manifest, held)

    def _template(self, folder: Path, manifest: TemplateManifest, held: locks.HeldLock) -> Template:
        def on_close() -> None:
            is_wanted = self._layout.find(manifest.key) == folder
            if not is_wanted and folder.exists():  # dropped or replaced meanwhile
                with self._layout.index():
                    self._layout.sweep()

        return Template(folder, manifest, held=held, on_close=on_close)

    def _drop(self, key: str, folder: Path, *, reason: str) -> None:
        _log.warning("template %s is dropped and will be made again: %s", key[:12], reason)
        with self._layout.index():
            self._layout.unlink(key, only=folder)  # a new template may have replaced it meanwhile
            self._layout.sweep()

    def disk_full_as_no_capacity(self) -> AbstractContextManager[None]:
        """Have a block that makes a template fail in words if the disk is full.

        Raises:
            NoCapacity: The block has met a full disk.
        """
        return full_disk_in_words(self._layout.folder, what=_NO_ROOM, resolution=_RESOLUTION)


def _check_key(key: str) -> str:
    if _KEY.fullmatch(key) is None:
        raise ValueError(f"{key!r} is not a template's key")
    return key
