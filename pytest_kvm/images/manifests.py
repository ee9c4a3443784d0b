"""The manifests of a store: one file for each name, which says what the image consists of."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path

from pytest_kvm.errors import ImageError
from pytest_kvm.images.image import ImageManifest
from pytest_kvm.spec.image import ImageRef


class Manifests:
    """A folder of manifests; a damaged one does not keep the others from being read.

    Args:
        folder: The folder; it is made when a manifest is written.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def names(self) -> tuple[str, ...]:
        """Return the names that are taken, in order."""
        return tuple(sorted(path.stem for path in self._folder.glob("[!.]*.json")))

    def path(self, name: str) -> Path:
        """Return the file of a name.

        Raises:
            SpecError: ``name`` is no image name, and only image names become paths.
        """
        return self._folder / f"{ImageRef(name).name}.json"

    def read(self, name: str) -> ImageManifest:
        """Return the manifest of a name.

        Raises:
            FileNotFoundError: There is no such name.
            ImageError: The file is damaged.
        """
        path = self._folder / f"{name}.json"
        manifest = read(path)
        if manifest.name != name:
            raise ImageError(
                f"{path} is the manifest of {manifest.name!r}",
                resolution=f"remove it: pytest-kvm images rm {name}",
            )
        return manifest

    def all(self) -> Iterator[ImageManifest]:
        """Yield every manifest.

        Raises:
            ImageError: A manifest is damaged.
        """
        for name in self.names():
            with suppress(FileNotFoundError):  # removed meanwhile
                yield self.read(name)

    def readable(self) -> Iterator[ImageManifest]:
        """Yield every manifest that is not damaged."""
        for name in self.names():
            with suppress(FileNotFoundError, ImageError):
                yield self.read(name)

    def foreign_files(self) -> list[Path]:
        """Return the files in the folder that are no manifests."""
        return [path for path in self._folder.glob("[!.]*") if path.suffix != ".json"]

    def damaged(self, *, also: Iterable[Path]) -> tuple[ImageError, ...]:
        """Return what is wrong with the damaged manifests in the folder and among the files ``also``."""
        reads = [partial(self.read, name) for name in self.names()]
        reads += [partial(read, path) for path in also]
        problems: list[ImageError] = []
        for read_one in reads:
            try:
                read_one()
            except ImageError as problem:
                problems.append(problem)
            except FileNotFoundError:
                continue
        return tuple(problems)


def read(path: Path) -> ImageManifest:
    """Read a manifest.

    Raises:
        FileNotFoundError: It is not there.
        ImageError: It is damaged.
    """
    try:
        return ImageManifest.from_json(path.read_text(errors="replace"), origin=path)
    except FileNotFoundError:
        raise
    except OSError as problem:
        raise ImageError(
            f"{path} cannot be read: {problem.strerror}", resolution="remove it, or give it back its rights"
        ) from problem


def write(manifest: ImageManifest, path: Path) -> None:
    """Write a manifest in one step, and sync it to the disk; only one process at a time may do so."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(".new")
    beside.unlink(missing_ok=True)  # left by a process that was killed
    with beside.open("x") as file:
        file.write(manifest.to_json())
        file.flush()
        os.fsync(file.fileno())
    beside.chmod(0o644)
    beside.replace(path)
