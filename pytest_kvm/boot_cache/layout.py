"""The boot cache on disk: its folders, links and locks, and the removal of garbage.

::

    <store>/current/<key>            link to the entry that answers to the key
            entries/<key>.<random>/  an entry: its files and
                    made-by-…        … the marker of a folder that the plugin made
                    manifest.json    … what the files contain; written last
                    used             lock: shared by users of the entry, exclusive
                                     for its maker; its time: the last use
            locks/<key>.lock         held by the process that makes the key's entry
            locks/index              held while links or folders change

An entry is published, replaced and dropped by changing one link with rename(2)
or unlink(2); the paths of its files never change. An entry is garbage if no
link leads to it and nobody holds its lock: it was replaced or dropped, or its
builder was killed (the kernel releases a flock(2) when its holder ends). A
folder that the plugin did not make has no marker and stays
(:mod:`pytest_kvm.host.folder_marker`).
"""

from __future__ import annotations

import logging
import os
import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pytest_kvm.boot_cache import ram_file
from pytest_kvm.boot_cache.template_files import USED, Damage, read, sync
from pytest_kvm.host import folder_marker, locks
from pytest_kvm.host.usable_folder import make_writable
from pytest_kvm.settings import Settings

_INDEX_TIMEOUT = 120.0
_ENTRY = re.compile(r"[0-9a-f]{8,128}\.[0-9a-f]{8}")
_log = logging.getLogger("pytest_kvm.boot_cache")


class Layout:
    """The folders, links and locks of a store.

    Args:
        folder: The store's folder; it is made when something is written.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._current = folder / "current"
        self._entries = folder / "entries"

    @classmethod
    def of(cls, settings: Settings) -> Layout:
        """Return the layout of a run's settings."""
        return cls(settings.cache_dir / "templates")

    def make(self) -> None:
        """Make the store's folder and that of its locks if they are missing, and check that they can be used.

        Raises:
            HostError: They cannot be made or written to.
            OSError: The disk is full.
        """
        for folder in (self.folder, self.folder / "locks"):
            make_writable(folder, what="the boot cache", flag="--kvm-cache-dir")

    @contextmanager
    def index(self) -> Iterator[None]:
        """Hold the index lock: nobody else can change links and folders, or lock an entry exclusively.

        Raises:
            HostError: The boot cache cannot be written to.
            NoCapacity: Somebody else holds it for too long.
            OSError: The disk is full.
        """
        self.make()
        lock = self.folder / "locks" / "index"
        with locks.exclusive(lock, describe="looking after templates", timeout=_INDEX_TIMEOUT):
            yield

    def build_lock(self, key: str) -> Path:
        """Return the path of the lock that the maker of the key's entry holds."""
        return self.folder / "locks" / f"{key}.lock"

    def all_keys(self) -> tuple[str, ...]:
        """Return the keys that lead to an entry, in order."""
        return tuple(sorted(path.name for path in self._current.glob("[!.]*")))

    def find(self, key: str) -> Path | None:
        """Return the entry of a key, None when it has none."""
        try:
            name = (self._current / key).readlink().name
        except OSError:  # there is no link
            return None
        return self._entries / name

    def find_locked(self, key: str) -> tuple[Path, locks.HeldLock] | None:
        """Take the shared lock of a key's entry: until it is released, nobody removes the entry's files.

        Returns None when the key has no entry.
        """
        found = self._try_find_locked(key)
        if found is None and self.find(key) is not None:
            with self.index():  # now nobody else locks a linked entry exclusively
                found = self._try_find_locked(key)
        return found

    def new(self, key: str) -> tuple[Path, locks.HeldLock]:
        """Sweep, then make an empty entry that no link leads to, and return it with its exclusive lock."""
        entry = self._entries / f"{key}.{secrets.token_hex(4)}"
        with self.index():
            self.sweep()
            self._entries.mkdir(mode=0o700, exist_ok=True)
            folder_marker.make(entry)
            (entry / USED).touch(mode=0o600)
            held = locks.try_exclusive(entry / USED)
        if held is None:
            raise RuntimeError(f"{entry} is new, and somebody holds it")
        return entry, held

    def link(self, key: str, entry: Path) -> None:
        """Let a key lead to an entry, in place of its former entry. The caller holds the index."""
        self._current.mkdir(mode=0o700, exist_ok=True)
        link = self._current / f".{entry.name}"
        link.unlink(missing_ok=True)
        link.symlink_to(Path("..") / self._entries.name / entry.name)
        link.rename(self._current / key)
        sync(self._current)

    def unlink(self, key: str, *, only: Path | None = None) -> None:
        """Remove the link of a key. The caller holds the index.

        Args:
            key: The key.
            only: Remove the link only if it leads to this entry.
        """
        link = self._current / key
        if self._is_own_link(link) and (only is None or self.find(key) == only):
            link.unlink()

    def is_held(self, entry: Path) -> bool:
        """Say whether somebody uses or makes an entry. The caller holds the index."""
        try:
            held = locks.try_exclusive(entry / USED)
        except PermissionError:
            return True  # perhaps another user's entry, which we cannot check
        except OSError:
            return False  # nothing there, or no entry at all
        if held is None:
            return True
        held.release()
        return False

    def remove_unpublished(self, held: locks.HeldLock) -> None:
        """Release the exclusive lock of a new entry, and remove the entry."""
        with self.index():
            held.release()
            self.sweep()

    def sweep(self) -> None:
        """Remove links that lead nowhere, and garbage. The caller holds the index."""
        wanted = {entry for key in self.all_keys() if (entry := self.find(key)) and entry.exists()}
        for link in self._current.glob("*"):
            if self._is_own_link(link) and self.find(link.name) not in wanted:
                link.unlink()
        for entry in self.garbage():
            _remove(entry)
        ram_file.sweep()

    def garbage(self) -> list[Path]:
        """Return the entries that no link leads to and nobody holds. The caller holds the index."""
        return [entry for entry in self.entries_without_link() if _is_own(entry) and not self.is_held(entry)]

    def entries_without_link(self) -> list[Path]:
        """Return what no link leads to: garbage, and entries that are being made or are in use yet."""
        linked = {self.find(key) for key in self.all_keys()}
        return [entry for entry in sorted(self._entries.glob("*")) if entry not in linked]

    def foreign_files(self) -> list[Path]:
        """Return the files among entries and links that the plugin did not make."""
        entries = [path for path in self._entries.glob("*") if not _is_own(path)]
        links = [path for path in self._current.glob("*") if not self._is_own_link(path)]
        return sorted(entries + links)

    def _is_own_link(self, path: Path) -> bool:
        """Say whether a path is a link that :meth:`link` has made."""
        if not path.is_symlink():
            return False
        target = path.readlink()
        return target.parent == Path("..") / self._entries.name and _ENTRY.fullmatch(target.name) is not None

    def _try_find_locked(self, key: str) -> tuple[Path, locks.HeldLock] | None:
        entry = self.find(key)
        if entry is None:
            return None
        try:
            held = locks.try_shared(entry / USED)
        except OSError:  # removed meanwhile, or damaged: to the caller it is the same
            return None
        if held is None:
            return None
        if held.is_at(entry / USED) and self.find(key) == entry:
            return entry, held
        held.release()
        return None


def _is_own(entry: Path) -> bool:
    """Say whether :meth:`Layout.new` has made a folder. The caller holds the index."""
    if _ENTRY.fullmatch(entry.name) is None:
        return False
    return folder_marker.is_ours(entry) or folder_marker.is_blank(entry) or _is_of_before_markers(entry)


def _is_of_before_markers(entry: Path) -> bool:
    """Say whether a folder is an entry from the time when entries had no markers.

    Such a folder has no marker, but a manifest with a valid checksum and with
    the key that is in the folder's name.
    """
    if entry.is_symlink() or os.path.lexists(entry / folder_marker.MARKER):
        return False
    try:
        read(entry, entry.name.partition(".")[0])
    except Damage:
        return False
    return True


def _remove(entry: Path) -> None:
    try:
        if _is_of_before_markers(entry):
            folder_marker.mark(entry)
        folder_marker.remove(entry)
    except OSError as error:  # perhaps another user's entry; the next sweep tries again
        _log.warning("%s cannot be removed: %s", entry, error)
