"""List, check and remove the templates of the boot cache."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pytest_kvm.boot_cache import template_files
from pytest_kvm.boot_cache.layout import Layout
from pytest_kvm.boot_cache.template_files import Damage, TemplateManifest
from pytest_kvm.errors import UnknownTemplate
from pytest_kvm.settings import Settings


@dataclass(frozen=True, kw_only=True)
class TemplateInfo:
    """What can be told about a template without using it."""

    key: str
    folder: Path
    manifest: TemplateManifest | None
    """None if the manifest cannot be read: then the next use drops the template."""
    size: int
    """Bytes on disk and in memory; holes take none."""
    last_used: float
    """Seconds since the epoch."""
    in_use: bool


@dataclass(frozen=True, kw_only=True)
class Problem:
    """Something wrong with a template."""

    key: str
    what: str


class Inventory:
    """Lists, checks and removes templates.

    Args:
        layout: The folders that the templates are in.
    """

    def __init__(self, layout: Layout) -> None:
        self._layout = layout

    @classmethod
    def of(cls, settings: Settings) -> Inventory:
        """Return the inventory of a run's settings."""
        return cls(Layout.of(settings))

    def list(self) -> tuple[TemplateInfo, ...]:
        """Return every template, those used longest ago first."""
        if not self._layout.folder.exists():
            return ()
        with self._layout.index():
            return self._infos()

    def resolve(self, prefix: str) -> str:
        """Return the one key that begins with ``prefix``.

        Raises:
            UnknownTemplate: No key begins with it, or several keys do.
        """
        keys = [key for key in self._layout.all_keys() if key.startswith(prefix)]
        if len(keys) == 1:
            return keys[0]
        if not keys:
            raise UnknownTemplate(
                f"no template {prefix!r} in {self._layout.folder}",
                resolution="`pytest-kvm cache list` shows what is there",
            )
        raise UnknownTemplate(
            f"{len(keys)} templates have keys that begin with {prefix!r}",
            details="\n".join(keys),
            resolution="write more of the key",
        )

    def remove(self, key: str) -> None:
        """Remove a template; its files go when nobody uses them any more."""
        with self._layout.index():
            self._layout.unlink(key)
            self._layout.sweep()

    def collect(self, *, cap: int) -> tuple[TemplateInfo, ...]:
        """Remove templates, those used longest ago first, until the rest fits into ``cap``.

        A template that is in use or being made stays. Leftovers of killed runs
        are removed, too.

        Args:
            cap: Bytes that templates may take up together.

        Returns:
            The templates that were removed.
        """
        if not self._layout.folder.exists():
            return ()
        with self._layout.index():
            infos = self._infos()
            removed = _surplus(infos, sum(info.size for info in infos) - cap)
            for info in removed:
                self._layout.unlink(info.key)
            self._layout.sweep()
        return removed

    def free(self, wanted: int) -> tuple[TemplateInfo, ...]:
        """Remove templates as :meth:`collect` does, until ``wanted`` bytes are freed."""
        total = sum(info.size for info in self.list())
        return self.collect(cap=total - wanted)

    def verify(self, keys: Sequence[str]) -> tuple[Problem, ...]:
        """Read every file of these templates and return what is wrong; changes nothing."""
        return tuple(Problem(key=key, what=what) for key in keys for what in self._problems(key))

    def _infos(self) -> tuple[TemplateInfo, ...]:
        found = (self._info(key) for key in self._layout.all_keys())
        return tuple(sorted((info for info in found if info), key=lambda info: info.last_used))

    def _info(self, key: str) -> TemplateInfo | None:
        folder = self._layout.find(key)
        if folder is None or not (folder / template_files.USED).exists():
            return None
        try:
            manifest = template_files.read(folder, key)
        except Damage:
            manifest = None
        return TemplateInfo(
            key=key,
            folder=folder,
            manifest=manifest,
            size=template_files.size(folder),
            last_used=(folder / template_files.USED).stat().st_mtime,
            in_use=self._layout.is_held(folder),
        )

    def _problems(self, key: str) -> Sequence[str]:
        held = self._layout.find_locked(key)
        if held is None:
            return ["it cannot be opened"]
        folder, lock = held
        try:
            return list(template_files.problems(folder, key))
        finally:
            lock.release()


def _surplus(infos: Sequence[TemplateInfo], surplus: int) -> tuple[TemplateInfo, ...]:
    """Return the first unused templates whose sizes together make up the surplus (bytes)."""
    chosen: list[TemplateInfo] = []
    for info in infos:
        if surplus <= 0:
            break
        if not info.in_use:
            chosen.append(info)
            surplus -= info.size
    return tuple(chosen)
