"""A template: in use by this process, with a lock on its files; or being made, until it is published."""

from __future__ import annotations

import os
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from pytest_kvm.boot_cache import template_files
from pytest_kvm.boot_cache.ram_file import RamFilePlace
from pytest_kvm.boot_cache.template_files import FORMAT, Damage, TemplateManifest
from pytest_kvm.errors import SnapshotFailed, StateDamaged
from pytest_kvm.host.locks import HeldLock


class Template:
    """A template whose files stay as they are until :meth:`close`.

    Users of the template only read the files: clones write to overlays and to
    private mappings of the memory.

    Args:
        folder: The folder of the template's files, for as long as the template is open.
        manifest: The template's manifest.
        held: The lock that keeps others from removing the files.
        on_close: Called after the lock was released.
    """

    def __init__(
        self, folder: Path, manifest: TemplateManifest, *, held: HeldLock, on_close: Callable[[], None]
    ) -> None:
        self.folder = folder
        self.manifest = manifest
        self._held = held
        self._on_close = on_close

    @property
    def key(self) -> str:
        """The key that the template is found by."""
        return self.manifest.key

    def path(self, name: str) -> Path:
        """Return the path of one of its files.

        Raises:
            KeyError: The template has no such file.
        """
        self.manifest.files[name]
        return self.folder / name

    def check_is_there(self) -> None:
        """Check that nobody has removed a file of it, whatever the lock says.

        Raises:
            StateDamaged: Somebody has.
        """
        gone = [name for name in self.manifest.files if not os.access(self.folder / name, os.F_OK)]
        if gone:
            raise StateDamaged(f"somebody has removed files of the template: {', '.join(gone)}")

    def close(self) -> None:
        """Release the files; clones that run from them are not disturbed. A second call does nothing."""
        if self._held.released:
            return
        self._held.touch()
        self._held.release()
        self._on_close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class Building:
    """The folder a template is made in, and the way to publish it.

    Args:
        key: The template's key.
        folder: An empty folder of mode 0700; its files keep their paths when it is published.
        ram: Where the RAM file is to be written.
        enter: Called with the manifest; puts the template into the store.
    """

    def __init__(
        self, key: str, *, folder: Path, ram: RamFilePlace, enter: Callable[[TemplateManifest], Template]
    ) -> None:
        self.key = key
        self.folder = folder
        self.ram = ram.path
        self.ram_note = ram.note
        """Why the RAM file is not in memory, although the setting asks for it; else empty."""
        self.is_published = False
        self._enter = enter

    def clear(self) -> None:
        """Remove all that was made so far, so that the template can be made in another way."""
        template_files.clear(self.folder)

    def publish(self, *, summary: str, versions: dict[str, str], facts: dict[str, Any]) -> Template:
        """Publish the folder as the template of the key, and return the template, in use.

        Every regular file of the folder belongs to the template, and nobody may
        write to these files any more. All of them are synced to the disk before
        the template can be found by its key.

        Args:
            summary: The spec of the saved guest, for people.
            versions: Versions of the programs that made the template.
            facts: What is needed to start a clone; only values that JSON can hold.

        Raises:
            SnapshotFailed: A file is still being written to.
            NoCapacity: The disk is full.
        """
        try:
            files = template_files.settle(self.folder)
        except Damage as damage:
            raise SnapshotFailed(f"the template {self.key[:12]} cannot be published: {damage}") from None
        manifest = TemplateManifest(
            key=self.key,
            format=FORMAT,
            created=datetime.now(UTC).isoformat(),
            summary=summary,
            versions=versions,
            facts=facts,
            files=files,
        )
        template_files.write(self.folder, manifest)
        template = self._enter(manifest)
        self.is_published = True
        return template
