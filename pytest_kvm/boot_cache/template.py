"""A template in use."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Self

from pytest_kvm.boot_cache.manifest import Manifest
from pytest_kvm.host.locks import Held


class Template:
    """A template whose files stay as they are until :meth:`close`.

    Every file is read-only for its users; writing goes to overlays and
    private mappings.

    Args:
        folder: Where its files are, for as long as it is open.
        manifest: What it is.
        held: Keeps others from removing it.
        on_close: Called after it was let go.
    """

    def __init__(self, folder: Path, manifest: Manifest, *, held: Held, on_close: Callable[[], None]) -> None:
        self.folder = folder
        self.manifest = manifest
        self._held = held
        self._on_close = on_close

    @property
    def key(self) -> str:
        """What it answers to."""
        return self.manifest.key

    def path(self, name: str) -> Path:
        """Return the path of one of its files.

        Raises:
            KeyError: It has no such file.
        """
        self.manifest.files[name]
        return self.folder / name

    def close(self) -> None:
        """Stop using it; guests that run from it are not disturbed. A second time is nothing."""
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
