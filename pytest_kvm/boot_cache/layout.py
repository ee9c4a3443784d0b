"""The store's folders: what leads where, what is held, what is garbage.

::

    <store>/current/<key>            link to the entry that answers to the key
            entries/<key>.<random>/  an entry: its files and
                    made-by-…        … the marker of a folder that the plugin made
                    manifest.json    … what they are; written last
                    used             lock: shared by whoever uses the entry, held
                                     alone by who makes it; its time: the last use
            locks/<key>.lock         held by the process that makes the key's entry
            locks/index              held while links or folders change

An entry appears, is replaced and is dropped by changing one link with
rename(2) or unlink(2), and its own paths never change. An entry that no link
leads to and that nobody holds is garbage, whether it was replaced, dropped,
or left by a builder that was killed: flock(2) ends with its holder. What has
no marker is somebody else's and stays (:mod:`pytest_kvm.host.ownership`).
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
from pytest_kvm.boot_cache.entry import USED, read, sync
from pytest_kvm.boot_cache.manifest import Damage
from pytest_kvm.host import locks, ownership
from pytest_kvm.settings import Settings

_INDEX_TIMEOUT = 120.0
_ENTRY = re.compile(r"[0-9a-f]{8,128}\.[0-9a-f]{8}")
_log = logging.getLogger("pytest_kvm.boot_cache")


class Layout:
    """Where entries are.

    Args:
        folder: The store's; made when something is written.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._current = folder / "current"
        self._entries = folder / "entries"

    @classmethod
    def of(cls, settings: Settings) -> Layout:
        """Return the layout of a run's settings."""
        return cls(settings.cache_dir / "templates")

    @contextmanager
    def index(self) -> Iterator[None]:
        """Keep everybody else from changing links and folders, and from taking locks alone."""
        lock = self.folder / "locks" / "index"
        with locks.exclusive(lock, describe="looking after templates", timeout=_INDEX_TIMEOUT):
            yield

    def build_lock(self, key: str) -> Path:
        """Return the lock of who makes the key's entry."""
        return self.folder / "locks" / f"{key}.lock"

    def all_keys(self) -> tuple[str, ...]:
        """Return the keys that lead to an entry, in order."""
        return tuple(sorted(path.name for path in self._current.glob("[!.]*")))

    def find(self, key: str) -> Path | None:
        """Return the entry of a key, None when it has none."""
        try:
            name = (self._current / key).readlink().name
        except OSError:  # nothing there, or nothing of ours
            return None
        return self._entries / name

    def hold(self, key: str) -> tuple[Path, locks.Held] | None:
        """Share the entry of a key: until it is released, nobody removes its files.

        Returns None when the key has no entry.
        """
        found = self._try_hold(key)
        if found is None and self.find(key) is not None:
            with self.index():  # who takes locks alone has the index: now nobody does
                found = self._try_hold(key)
        return found

    def new(self, key: str) -> tuple[Path, locks.Held]:
        """Make an empty entry that no link leads to yet, held alone; sweep before."""
        entry = self._entries / f"{key}.{secrets.token_hex(4)}"
        with self.index():
            self.sweep()
            self._entries.mkdir(mode=0o700, exist_ok=True)
            ownership.make(entry)
            (entry / USED).touch(mode=0o600)
            held = locks.try_exclusive(entry / USED)
        if held is None:
            raise RuntimeError(f"{entry} is new, and somebody holds it")
        return entry, held

    def link(self, key: str, entry: Path) -> None:
        """Let a key lead to an entry, instead of the one before; with the index held."""
        self._current.mkdir(mode=0o700, exist_ok=True)
        link = self._current / f".{entry.name}"
        link.unlink(missing_ok=True)
        link.symlink_to(Path("..") / self._entries.name / entry.name)
        link.rename(self._current / key)
        sync(self._current)

    def unlink(self, key: str, *, only: Path | None = None) -> None:
        """Let a key lead nowhere; with the index held.

        Args:
            key: The key.
            only: Do it only if it leads to this entry.
        """
        link = self._current / key
        if self._is_own_link(link) and (only is None or self.find(key) == only):
            link.unlink()

    def is_held(self, entry: Path) -> bool:
        """Say whether somebody uses or makes an entry; with the index held."""
        try:
            held = locks.try_exclusive(entry / USED)
        except PermissionError:
            return True  # another user's, perhaps: not ours to judge
        except OSError:
            return False  # nothing there, or no entry at all
        if held is None:
            return True
        held.release()
        return False

    def abandon(self, held: locks.Held) -> None:
        """Remove the new entry that was held alone."""
        with self.index():
            held.release()
            self.sweep()

    def sweep(self) -> None:
        """Remove the garbage; with the index held."""
        wanted = {entry for key in self.all_keys() if (entry := self.find(key)) and entry.exists()}
        for link in self._current.glob("*"):
            if self._is_own_link(link) and self.find(link.name) not in wanted:
                link.unlink()
        for entry in self._entries.glob("*"):
            if entry not in wanted and _is_own(entry) and not self.is_held(entry):
                _remove(entry)
        ram_file.sweep()

    def strangers(self) -> list[Path]:
        """Return what lies among entries and links and was not put there by the plugin."""
        entries = [path for path in self._entries.glob("*") if not _is_own(path)]
        links = [path for path in self._current.glob("*") if not self._is_own_link(path)]
        return sorted(entries + links)

    def _is_own_link(self, path: Path) -> bool:
        """Say whether something is a link that :meth:`link` has made."""
        if not path.is_symlink():
            return False
        target = path.readlink()
        return target.parent == Path("..") / self._entries.name and _ENTRY.fullmatch(target.name) is not None

    def _try_hold(self, key: str) -> tuple[Path, locks.Held] | None:
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
    """Say whether :meth:`Layout.new` has made a folder; with the index held."""
    if _ENTRY.fullmatch(entry.name) is None:
        return False
    return ownership.is_ours(entry) or ownership.is_blank(entry) or _is_of_before_markers(entry)


def _is_of_before_markers(entry: Path) -> bool:
    """Say whether a folder has the manifest, sealed by its checksum, of an entry of that name."""
    if entry.is_symlink() or os.path.lexists(entry / ownership.MARKER):
        return False
    try:
        read(entry, entry.name.partition(".")[0])
    except Damage:
        return False
    return True


def _remove(entry: Path) -> None:
    try:
        if _is_of_before_markers(entry):
            ownership.mark(entry)
        ownership.remove(entry)
    except OSError as error:  # not ours, perhaps; the next sweep tries again
        _log.warning("%s cannot be removed: %s", entry, error)
