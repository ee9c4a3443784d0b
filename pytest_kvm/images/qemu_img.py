"""Inspect, convert and make disks with qemu-img; no other module runs it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pytest_kvm.errors import ConvertFailed, HostCommandFailed, ImageError
from pytest_kvm.host import command
from pytest_kvm.host.oldest_versions import check_version, version_in

Format = Literal["qcow2", "raw"]

_QUICK = 60.0
_CONVERT = 1800.0


@dataclass(frozen=True, kw_only=True)
class DiskInfo:
    """What ``qemu-img info`` says of a file."""

    format: str
    virtual_size: int
    """Bytes."""
    backing_file: str | None
    data_file: str | None
    encrypted: bool
    backing_format: str | None = None
    """What the file says that its backing file is."""
    snapshots: tuple[str, ...] = ()
    """Names of the snapshots that it holds."""


def check_installed() -> None:
    """Check that qemu-img is there, and new enough.

    Raises:
        MissingDependency: It is not.
        HostCommandFailed: It does not run.
    """
    said = command.run(["qemu-img", "--version"], timeout=_QUICK).stdout
    check_version("qemu-img", version_in(said))


def info(path: Path, *, disk_format: str | None = None) -> DiskInfo:
    """Return what ``qemu-img info`` says of a disk file, without following its references to other files.

    Args:
        path: The file.
        disk_format: What it is taken for; None: what it looks like. A guest can make a raw disk look like
            anything.

    Raises:
        ImageError: qemu-img cannot read it.
    """
    try:
        taken_for = ["-f", disk_format] if disk_format else []
        argv = ["qemu-img", "info", "--force-share", "--output=json", *taken_for, "--", _plain(path)]
        reply = command.run(argv, timeout=_QUICK)
    except HostCommandFailed as problem:
        raise ImageError(f"{path} is not a disk image qemu-img can read", details=problem.details) from None
    facts: dict[str, Any] = json.loads(reply.stdout)
    specific = facts.get("format-specific", {}).get("data", {})
    return DiskInfo(
        format=str(facts["format"]),
        virtual_size=int(facts["virtual-size"]),
        backing_file=facts.get("backing-filename"),
        data_file=specific.get("data-file"),
        encrypted=bool(facts.get("encrypted", False)),
        backing_format=facts.get("backing-filename-format"),
        snapshots=tuple(str(each["name"]) for each in facts.get("snapshots", ())),
    )


def require_self_contained(path: Path) -> DiskInfo:
    """Check that a disk file, which may come from a stranger, refers to no other file.

    A qcow2 header can name any file of this host as backing or data file, and
    the guest could then read it (qemu-img(1), docs/interop/qcow2.txt in QEMU).

    Raises:
        ImageError: The disk refers to another file, is encrypted, or is neither qcow2 nor raw.
    """
    found = info(path)
    other = found.backing_file or found.data_file
    if other is not None:
        raise ImageError(
            f"{path} is not complete: it needs the file {other}",
            resolution=f"flatten it where it comes from: qemu-img convert -O qcow2 {path} flat.qcow2",
        )
    if found.encrypted:
        raise ImageError(f"{path} is encrypted", resolution="import a decrypted copy")
    if found.format not in ("qcow2", "raw"):
        raise ImageError(
            f"{path} has the format {found.format}; qcow2 and raw can be imported",
            resolution=f"qemu-img convert -O qcow2 {path} converted.qcow2",
        )
    return found


def to_qcow2(source: Path, target: Path, *, source_format: Format) -> None:
    """Copy a disk into a new, uncompressed, sparse qcow2 file.

    Raises:
        ConvertFailed: qemu-img refused.
    """
    argv = ["qemu-img", "convert", "-f", source_format, "-O", "qcow2", "-W", "-m", "4"]
    try:
        command.run([*argv, _plain(source), _plain(target)], timeout=_CONVERT)
    except HostCommandFailed as problem:
        raise ConvertFailed(f"{source} cannot be converted to qcow2", details=problem.details) from None


def create_overlay(path: Path, *, backing: Path, size: int | None = None) -> None:
    """Make an overlay: an empty qcow2 file that shows the contents of ``backing`` until it is written to.

    Args:
        path: The file to make.
        backing: A disk file, which is never written to.
        size: Bytes the guest sees; None for the backing file's size.

    Raises:
        HostCommandFailed: qemu-img failed.
    """
    found = info(backing)
    argv = ["qemu-img", "create", "-q", "-u", "-f", "qcow2", "-F", found.format, "-b", _plain(backing)]
    command.run([*argv, _plain(path), str(size or found.virtual_size)], timeout=_QUICK)


def create_clone_overlay(path: Path, *, backing: Path, backing_format: Format) -> None:
    """Make an overlay on a disk whose format is known, which takes one process instead of two.

    Raises:
        HostCommandFailed: qemu-img failed.
    """
    argv = ["qemu-img", "create", "-q", "-f", "qcow2", "-F", backing_format, "-b", _plain(backing)]
    command.run([*argv, _plain(path)], timeout=_QUICK)


def point_at(path: Path, *, backing: Path, backing_format: str) -> None:
    """Change the path by which an overlay names its backing file; the contents stay as they are.

    Args:
        path: The overlay.
        backing: The same file by another path; a relative one is taken from
            the overlay's folder (qemu-img(1), ``rebase -u``).
        backing_format: The backing file's format.

    Raises:
        HostCommandFailed: qemu-img failed.
    """
    argv = ["qemu-img", "rebase", "-q", "-u", "-f", "qcow2", "-F", backing_format, "-b", str(backing)]
    command.run([*argv, _plain(path)], timeout=_QUICK)


def rebase(path: Path, *, backing: Path | None) -> None:
    """Put an overlay on another file below its own, and copy into it what it showed of those in between.

    Args:
        path: The overlay. It may hold no snapshots: they would show something else afterwards.
        backing: The qcow2 file; None: the overlay becomes complete without any.

    Raises:
        HostCommandFailed: qemu-img failed.
    """
    argv = ["qemu-img", "rebase", "-q", "-f", "qcow2"]
    argv += ["-b", ""] if backing is None else ["-F", "qcow2", "-b", _plain(backing)]
    command.run([*argv, _plain(path)], timeout=_CONVERT)


def drop_snapshot(path: Path, name: str) -> None:
    """Remove a snapshot from a qcow2 file that nobody has open.

    Raises:
        HostCommandFailed: qemu-img failed.
    """
    command.run(["qemu-img", "snapshot", "-q", "-d", name, _plain(path)], timeout=_CONVERT)


def copy_with_snapshots(source: Path, target: Path) -> None:
    """Copy a qcow2 file with its snapshots, which ``qemu-img convert`` would leave out.

    If the file names an image by a relative path (:func:`point_at`), the copy names it by the
    whole path, because the copy is in another folder.

    Raises:
        HostCommandFailed: The copy failed, for instance for want of room.
        ImageError: qemu-img cannot read the copy.
    """
    copy_sparse(source, target)
    backing = info(target).backing_file
    if backing is not None and not Path(backing).is_absolute():
        point_at(target, backing=(source.parent / backing).resolve(), backing_format="qcow2")


def copy_sparse(source: Path, target: Path) -> None:
    """Copy a file; what is zero in it takes up no room in the copy, and may share the file's blocks.

    Raises:
        HostCommandFailed: The copy failed, for instance for want of room.
    """
    command.run(
        ["cp", "--sparse=always", "--reflink=auto", "--", _plain(source), _plain(target)], timeout=_CONVERT
    )


def create_blank(path: Path, *, size: int, disk_format: Format = "qcow2") -> None:
    """Make an empty disk.

    Args:
        path: The file to make.
        size: Bytes the guest sees.
        disk_format: qcow2 or raw; both take up only what is written.

    Raises:
        HostCommandFailed: qemu-img failed.
    """
    command.run(["qemu-img", "create", "-q", "-f", disk_format, _plain(path), str(size)], timeout=_QUICK)


def _plain(path: Path) -> str:
    # qemu-img would take a leading protocol ("nbd:…", "json:…") as an address; a whole path has none.
    return str(path.absolute())
