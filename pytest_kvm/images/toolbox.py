"""The programs that make a disk, taken from the same Debian release as the disk's packages.

A file system made by this host's e2fsprogs may have features that an older
release's kernel or boot loader cannot read, and most hosts have no BIOS boot
loader at all. So the programs come from the same archive as the packages. They
are unpacked into a small folder and run there in a chroot; nothing is installed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pytest_kvm.host import command
from pytest_kvm.images import debootstrap, namespace

ROOTFS = Path("/mnt/rootfs")
"""Where a program in the toolbox finds the root filesystem."""
WORK = Path("/mnt/work")
"""Where a program in the toolbox finds the folder it works in."""

_PACKAGES = ("e2fsprogs", "fdisk", "grub-common", "grub-efi-amd64-bin", "grub-pc-bin", "mtools")
_MERGED_USR = """\
set -eu
for d in bin sbin lib lib64; do mkdir -p "$1/usr/$d"; ln -s "usr/$d" "$1/$d"; done
mkdir -p "$1/mnt/rootfs" "$1/mnt/work\""""
_ENTER = """\
set -eu
tools=$1 rootfs=$2 work=$3
shift 3
mount --bind "$rootfs" "$tools/mnt/rootfs"
mount --bind "$work" "$tools/mnt/work"
cd /
exec chroot "$tools" "$@"
"""


@dataclass(frozen=True, kw_only=True)
class Toolbox:
    """A folder with a release's disk programs."""

    folder: Path

    def run(
        self, argv: Sequence[str | Path], *, rootfs: Path, work: Path, text: str | None = None
    ) -> command.Completed:
        """Run a program of the toolbox; it sees the toolbox, ``rootfs`` and ``work``, and nothing else.

        Raises:
            HostCommandFailed: The program failed.
        """
        return namespace.run(
            ["sh", "-c", _ENTER, "toolbox", self.folder, rootfs, work, *argv],
            timeout=300,
            env={"E2FSPROGS_FAKE_TIME": "0", "MTOOLS_SKIP_CHECK": "1"},
            text=text,
        )

    def read(self, path: str) -> bytes:
        """Return a file of the toolbox, by its path inside."""
        return (self.folder / path.lstrip("/")).read_bytes()


def unpack(suite: str, folder: Path, *, temporary: Path) -> Toolbox:
    """Make a release's toolbox in a new folder; takes about five seconds."""
    debootstrap.unpack(
        suite,
        folder,
        packages=_PACKAGES,
        options=("--variant=extract", f"--setup-hook={_MERGED_USR}"),
        temporary=temporary,
    )
    return Toolbox(folder=folder)
