"""A cache that tests have to themselves, with the images of another."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from pytest_kvm.boot_cache import ram_file
from pytest_kvm.host import folder_marker

_PROBE = "kvm-probe.json"
"""What was found out about this machine's KVM."""


class OwnCache:
    """Has no template at first.

    Args:
        folder: It is made.
        outer: The cache whose images are used.
    """

    def __init__(self, folder: Path, *, outer: Path) -> None:
        self.folder = folder
        self.templates = folder / "templates"
        self.templates.mkdir(parents=True)
        for name in ("images", "libvirt"):
            (outer / name).mkdir(parents=True, exist_ok=True)
            (folder / name).symlink_to(outer / name)
        if (outer / _PROBE).exists():
            shutil.copy(outer / _PROBE, folder)

    @property
    def entries(self) -> list[Path]:
        """The folders of templates, whether a key leads to them or not."""
        return sorted((self.templates / "entries").glob("*"))

    def check_no_litter(self) -> None:
        """Check that it holds templates and locks that nobody holds, nothing else."""
        current = {link.resolve() for link in (self.templates / "current").iterdir()}
        assert set(self.entries) == current
        assert not list((self.templates / "locks").glob("*.holder"))
        in_memory = {
            path.resolve().parent for path in self.templates.glob("entries/*/ram") if path.is_symlink()
        }
        assert {path for path in memory_folders() if self._is_mine(path)} == in_memory

    def remove(self) -> None:
        """Remove what it keeps in memory; the rest goes with its folder."""
        for entry in self.entries:
            (entry / "ram").unlink(missing_ok=True)
            entry.rename(entry.with_name(f"{entry.name}.gone"))
        ram_file.sweep()

    def _is_mine(self, memory: Path) -> bool:
        marker = folder_marker.marker_of(memory)
        return marker is not None and Path(marker["entry"]).is_relative_to(self.folder)


def memory_folders() -> list[Path]:
    """Return the folders of RAM files in memory, of whichever cache."""
    return sorted(Path("/dev/shm").glob(f"pytest-kvm-{os.getuid()}-*"))
