"""A template that is being made."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pytest_kvm.boot_cache import entry
from pytest_kvm.boot_cache.manifest import FORMAT, Damage, Manifest
from pytest_kvm.boot_cache.ram_file import RamFilePlace
from pytest_kvm.boot_cache.template import Template
from pytest_kvm.errors import SnapshotFailed


class Building:
    """The folder a template is made in, and the way to publish it.

    Args:
        key: What it will answer to.
        folder: Empty, mode 0700; its files keep their paths when it is published.
        ram: Where the RAM file is to be written.
        enter: Puts a manifest's template into the store.
    """

    def __init__(
        self, key: str, *, folder: Path, ram: RamFilePlace, enter: Callable[[Manifest], Template]
    ) -> None:
        self.key = key
        self.folder = folder
        self.ram = ram.path
        self.ram_note = ram.note
        """Why the RAM file is not in memory though the setting wants it there."""
        self.is_published = False
        self._enter = enter

    def publish(self, *, summary: str, versions: dict[str, str], facts: dict[str, Any]) -> Template:
        """Make what is in the folder the template of the key, and return it, in use.

        Every regular file of the folder belongs to it, and from now on nobody
        may write to one. All of it is on the disk before the key leads to it.

        Args:
            summary: What was frozen, for people.
            versions: Of the programs that made it.
            facts: What starting a clone needs to know; must be what JSON can hold.

        Raises:
            SnapshotFailed: A file is still written to.
            NoCapacity: The disk is full.
        """
        try:
            files = entry.settle(self.folder)
        except Damage as damage:
            raise SnapshotFailed(f"the template {self.key[:12]} cannot be published: {damage}") from None
        manifest = Manifest(
            key=self.key,
            format=FORMAT,
            created=datetime.now(UTC).isoformat(),
            summary=summary,
            versions=versions,
            facts=facts,
            files=files,
        )
        entry.write(self.folder, manifest)
        template = self._enter(manifest)
        self.is_published = True
        return template
