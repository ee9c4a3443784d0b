"""Make the root filesystem of an image: install packages, then add the plugin's own files."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from pytest_kvm.errors import HostCommandFailed, ImageError
from pytest_kvm.images import debootstrap, lean, namespace
from pytest_kvm.images.build_progress import BuildProgress
from pytest_kvm.images.recipe import Recipe

_DATA = Path(__file__).parent / "data"
DIRECT_BOOT_MODULES = ("ext4", "virtio_pci", "virtio_blk")
"""Modules of the initrd for direct boot, where QEMU always has a virtio disk; the initrd on the
image's disk has modules for more controllers."""

_BASE_OPTIONS = (
    "--variant=minbase",
    '--aptopt=Acquire::Languages "none"',
    "--dpkgopt=path-exclude=/usr/share/man/*",
    "--dpkgopt=path-exclude=/usr/share/locale/*",
    "--dpkgopt=path-exclude=/usr/share/doc/*",
    "--dpkgopt=path-include=/usr/share/doc/*/copyright",
    '--customize-hook=sh "$PKVM_FINISH" "$1"',
)
# Copied before the packages are installed: installing the kernel makes the initrd from these files.
_OVERLAY_HOOK = '--essential-hook=cp -rT --no-preserve=ownership "$PKVM_OVERLAY" "$1"'
_EXTEND_OPTIONS = (
    "--variant=custom",
    '--setup-hook=tar -C "$1" --zstd --numeric-owner --xattrs --xattrs-include="*" -xpf "$PKVM_BASE"',
    '--customize-hook=sh "$PKVM_EXTEND" "$1"',
)

_PACKAGE = re.compile(r"[a-z0-9][a-z0-9+.-]+(:[a-z0-9]+)?(=[A-Za-z0-9.+:~-]+)?")
_NO_SUCH_PACKAGE = re.compile(
    r"Unable to locate package (\S+)|Package '?([^'\s]+)'? has no installation candidate"
    r"|Version '[^']+' for '([^']+)' was not found"
)


def unpack(recipe: Recipe, folder: Path, *, uuid: str, temporary: Path, progress: BuildProgress) -> None:
    """Install a recipe's packages into a folder and finish it as a guest's root.

    Args:
        recipe: The image's recipe.
        folder: The folder to make; must not exist.
        uuid: UUID the root file system will have.
        temporary: Folder for temporary files, removed by the caller.
        progress: Called with how far the installation is.

    Raises:
        HostCommandFailed: A package cannot be downloaded or installed.
    """
    debootstrap.unpack(
        recipe.suite,
        folder,
        packages=recipe.packages,
        options=(*_BASE_OPTIONS, *([_OVERLAY_HOOK] if recipe.lean else [])),
        temporary=temporary,
        env=_finish_environment(recipe, uuid),
        progress=progress,
    )


def extend(
    recipe: Recipe,
    folder: Path,
    *,
    archive: Path,
    packages: Sequence[str],
    uuid: str,
    temporary: Path,
    progress: BuildProgress,
) -> None:
    """Unpack a base image's root filesystem and install further packages in it.

    No service is started: mmdebstrap(1) forbids that by a policy-rc.d.

    Args:
        recipe: The recipe that the base was built from.
        folder: The folder to make; must not exist.
        archive: The base's root filesystem.
        packages: Names, as ``apt-get install`` takes them.
        uuid: UUID the root file system will have.
        temporary: Folder for temporary files, removed by the caller.
        progress: Called with how far the installation is.

    Raises:
        ImageError: A package does not exist in the release.
        HostCommandFailed: A package cannot be installed.
    """
    check_names(packages)
    try:
        debootstrap.unpack(
            recipe.suite,
            folder,
            packages=(),
            options=_EXTEND_OPTIONS,
            temporary=temporary,
            env={
                **_finish_environment(recipe, uuid),
                "PKVM_BASE": str(archive),
                "PKVM_EXTEND": str(_DATA / "extend.sh"),
                "PKVM_PACKAGES": " ".join(packages),
            },
            progress=progress,
        )
    except HostCommandFailed as problem:
        if match := _NO_SUCH_PACKAGE.search(problem.details):
            raise _no_such_package(next(filter(None, match.groups())), recipe) from None
        raise


def check_names(packages: Sequence[str]) -> None:
    """Check that package names are valid, before any of them is passed to a program.

    Raises:
        ImageError: A name is not valid.
    """
    for package in packages:
        if not _PACKAGE.fullmatch(package):
            raise ImageError(
                f"packages: {package!r} is not a Debian package name",
                resolution="write name, name:architecture or name=version",
            )


def archive(folder: Path, target: Path) -> None:
    """Pack a root filesystem into a tar archive, with owners, modes and capabilities."""
    namespace.run(
        [
            "tar", "-C", folder, "--numeric-owner", "--sort=name", "--xattrs", "--xattrs-include=*",
            "--use-compress-program=zstd -1 -T0", "-cf", target, ".",
        ],
        timeout=600,
    )  # fmt: skip


def installed_versions(folder: Path, *packages: str) -> dict[str, str]:
    """Return the versions of those packages that are installed, by name."""
    status = (folder / "var/lib/dpkg/status").read_text(errors="replace")
    versions = dict(re.findall(r"^Package: (\S+)\n(?:[^\n]+\n)*?Version: (\S+)$", status, re.MULTILINE))
    return {package: versions[package] for package in packages if package in versions}


def _finish_environment(recipe: Recipe, uuid: str) -> dict[str, str]:
    return {
        "PKVM_CLOUD_CONFIG": str(_DATA / "cloud.cfg"),
        "PKVM_FINISH": str(_DATA / "finish.sh"),
        "PKVM_LEAN": "1" if recipe.lean else "0",
        "PKVM_MASKED": " ".join(lean.MASKED),
        "PKVM_MASKED_GENERATORS": " ".join(lean.MASKED_GENERATORS),
        "PKVM_MODULES": ",".join(DIRECT_BOOT_MODULES),
        "PKVM_NOT_WANTED": " ".join(lean.NOT_WANTED),
        "PKVM_OVERLAY": str(_DATA / "lean"),
        "PKVM_PLAIN_MODULES": " ".join(lean.PLAIN_MODULES),
        "PKVM_UNPACK_MODULES": str(_DATA / "plain_modules.py"),
        "PKVM_UUID": uuid,
    }


def _no_such_package(package: str, recipe: Recipe) -> ImageError:
    return ImageError(
        f"packages: Debian {recipe.suite} has no package {package!r}",
        resolution="correct the name in the guest's packages (only the component main is used)",
    )
