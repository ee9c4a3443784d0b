"""A template that this process uses, with the lock on its files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Self

from pytest_kvm.boot_cache.manifest import Manifest
from pytest_kvm.host.locks import Held


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

    def __init__(self, folder: Path, manifest: Manifest, *, held: Held, on_close: Callable[[], None]) -> None:
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
