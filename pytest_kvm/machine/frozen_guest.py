"""A guest that is kept whole: its memory, its devices and its disks at one moment.

It is a folder that stands alone but for the image below the guest's root disk.
It holds all that the guest knew, keys and passwords included.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import shutil
import time
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pytest_kvm.errors import SavepointRefused, SpecError
from pytest_kvm.host.disk_space import check_room
from pytest_kvm.host.resources import memory_saved_mib
from pytest_kvm.host.run_records import read_machine
from pytest_kvm.host.ssh_keys import write_private
from pytest_kvm.images.disk_layers import FORMATS, DiskLayers, copy_all, drop_snapshots, layers_of
from pytest_kvm.images.image import BLOB
from pytest_kvm.images.image_store import digest_in_store
from pytest_kvm.machine.savepoints import drop_former
from pytest_kvm.render.thawed_xml import (
    BOOT_FILES,
    boot_files_of,
    disks_of,
    host_cards_of,
    other_disks_of,
)

if TYPE_CHECKING:
    from pytest_kvm.machine.machine import Machine

MANIFEST = "frozen.json"
DOMAIN_XML = "domain.xml"
CONSOLE = "console.log"
KEY = "id_ed25519"
_FORMAT = 1
_FIRST_YEAR = 2020
"""Nothing was frozen earlier."""
LEFT_MIB = 64
"""Room on a disk that is left for what guests write."""


@dataclass(frozen=True, kw_only=True)
class KeptDisk:
    """The files of one disk."""

    files: tuple[str, ...]
    """The one that the guest wrote to comes first."""
    formats: tuple[str, ...]
    image: str | None
    """SHA-256 of the image below them; None: they are complete."""


@dataclass(frozen=True, kw_only=True)
class FrozenGuest:
    """What has to be known of a frozen guest, beside its files."""

    format: int
    guest: str
    snapshot: str
    """Its name: it is in the disks, and holds memory and devices."""
    frozen: float
    """When, in seconds since the epoch."""
    qemu: str
    """Version of QEMU."""
    pytest_kvm: str
    """Version of the plugin."""
    image: str
    """Name of the image that the guest was made from; empty: nobody knows."""
    login: str
    host_key: str
    disks: tuple[KeptDisk, ...]
    boot_files: dict[str, str | None]
    """Those of kernel, initrd and nvram that it has, each with the SHA-256 of the image's file; None: a copy
    is here, under that name."""

    @property
    def from_store(self) -> frozenset[str]:
        """SHA-256 of all files of images that it needs."""
        digests = [*(disk.image for disk in self.disks), *self.boot_files.values()]
        return frozenset(digest for digest in digests if digest is not None)

    @classmethod
    def read(cls, folder: Path) -> FrozenGuest:
        """Read what :func:`freeze` has written.

        Raises:
            SpecError: There is no frozen guest, it is not complete, or another version has kept it.
        """
        path = folder / MANIFEST
        try:
            stored: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
            if stored["format"] != _FORMAT:
                raise SpecError(f"{path} has the format {stored['format']!r}, not {_FORMAT}")
            disks: dict[str, Any] = {"disks": tuple(_disk_from_json(each) for each in stored["disks"])}
            found = cls(**(stored | disks))
            found._check()
        except OSError as failure:
            raise SpecError(f"{path} cannot be read: {failure.strerror}") from None
        except (ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError) as mistake:
            raise SpecError(f"{path} cannot be read: {mistake!r}") from None
        for name in (DOMAIN_XML, KEY, CONSOLE, *found.files):
            if "/" in name or not (folder / name).is_file():
                raise SpecError(f"the frozen guest in {folder} is not complete: {name} is missing")
        return found

    @property
    def moment(self) -> datetime:
        """When it was frozen, in UTC."""
        return datetime.fromtimestamp(self.frozen, UTC)

    @property
    def files(self) -> list[str]:
        """Names of the files that the guest is started with."""
        copies = [name for name, digest in self.boot_files.items() if digest is None]
        return [*copies, *(name for disk in self.disks for name in disk.files)]

    def _check(self) -> None:
        """Raise ValueError if something in it has the wrong form."""
        texts: list[object] = [self.guest, self.snapshot, self.qemu, self.image, self.login, self.host_key]
        if wrong := [each for each in (*texts, *self.files) if not isinstance(each, str)]:
            raise ValueError(f"{wrong[0]!r} is no text")
        if wrong := [name for name in self.boot_files if name not in BOOT_FILES]:
            raise ValueError(f"{wrong[0]!r} is nothing that a guest boots from")
        if self.moment.year < _FIRST_YEAR:
            raise ValueError(f"{self.frozen!r} is no time")
        if not re.match(r"\d+\.\d+\.", self.qemu):
            raise ValueError(f"{self.qemu!r} is no version")
        if wrong := [each for each in self.from_store if not BLOB.fullmatch(each)]:
            raise ValueError(f"{wrong[0]!r} is no SHA-256")


def find_frozen(artifact: Path) -> Path:
    """Return the folder of a frozen guest: the one that is named, or the only one below it.

    Args:
        artifact: The folder itself, or one around it: that of a guest, a test, or all artifacts.

    Raises:
        SpecError: There is none, or there are several.
    """
    if not artifact.is_dir() or not os.access(artifact, os.R_OK | os.X_OK):
        raise SpecError(f"{artifact} is no folder that you can read")
    found = [path.parent for path in sorted(artifact.rglob(MANIFEST))]
    if len(found) > 1:
        raise SpecError(
            f"there are several frozen guests in {artifact}",
            details="\n".join(str(path) for path in found),
            resolution="name the folder of one guest",
        )
    if not found:
        raise SpecError(
            f"there is no frozen guest in {artifact}",
            resolution="name a folder that a failed test of a run with --kvm-dump=guest has left",
        )
    return found[0]


def freeze(machine: Machine, folder: Path) -> None:
    """Keep a guest whole; it goes on afterwards, if it is not paused.

    Args:
        machine: The guest's machine.
        folder: An empty one; its files go there.

    Raises:
        SavepointRefused: It cannot be frozen: it has a card on a network of the host, or a writable disk
            that is not qcow2.
        NoCapacity: A disk has no room for it.
        SnapshotFailed: QEMU failed.
        HostCommandFailed: A disk could not be copied.
        OSError: A file could not be written.
    """
    domain = machine.domain
    xml = domain.xml()
    if cards := host_cards_of(xml):
        raise SavepointRefused(
            f"{machine.name} cannot be frozen with a card on a network of the host ({cards[0]})"
        )
    if others := other_disks_of(xml):
        raise SavepointRefused(f"{machine.name} cannot be frozen with a disk that is no file: {others[0]}")
    disks = [layers_of(disk.file, disk_format=disk.format) for disk in disks_of(xml)]
    _check_room(machine, folder, disks)
    shutil.copyfile(machine.console.log, folder / CONSOLE)
    boot_files = {name: _keep_boot_file(path, folder / name) for name, path in boot_files_of(xml).items()}
    write_private(folder / DOMAIN_XML, xml)
    write_private(folder / KEY, machine.access.key_file.read_bytes())
    snapshot = f"kvm-frozen-{secrets.token_hex(4)}"  # one that could not be dropped is in nobody's way
    frozen = time.time()
    domain.take_snapshot(snapshot)
    try:
        kept = [_keep_disk(disk, number, folder, snapshot=snapshot) for number, disk in enumerate(disks)]
    finally:
        drop_former(machine, [snapshot])
    record = read_machine(machine.folder, owner=os.geteuid())
    qemu = domain.qmp("query-version")["qemu"]
    known = FrozenGuest(
        format=_FORMAT,
        guest=machine.name,
        snapshot=snapshot,
        frozen=frozen,
        qemu=f"{qemu['major']}.{qemu['minor']}.{qemu['micro']}",
        pytest_kvm=version("pytest-kvm"),
        image=record.image if record is not None else "",
        login=machine.access.user,
        host_key=machine.access.host_key,
        disks=tuple(kept),
        boot_files=boot_files,
    )
    # Last of all, because without it the rest is no frozen guest.
    write_private(folder / MANIFEST, json.dumps(asdict(known), indent=2) + "\n")


def _disk_from_json(stored: dict[str, Any]) -> KeptDisk:
    disk = KeptDisk(files=tuple(stored["files"]), formats=tuple(stored["formats"]), image=stored["image"])
    is_known = all(each in FORMATS for each in disk.formats)
    if not disk.files or len(disk.files) != len(disk.formats) or not is_known:
        raise ValueError(f"{stored!r} is no disk")
    return disk


def _check_room(machine: Machine, folder: Path, disks: list[DiskLayers]) -> None:
    """Check that there is room for the snapshot in the machine's disks, and for copies of these."""
    memory = memory_saved_mib(machine.domain.pid) if machine.domain.pid is not None else 0
    copies = memory + sum(disk.taken_mib for disk in disks) + LEFT_MIB
    check_room([(machine.folder, memory), (folder, copies)], what=f"{machine.name} is not frozen")


def _keep_boot_file(path: Path, target: Path) -> str | None:
    """Copy a file, unless it is one of an image; then return its SHA-256."""
    digest = digest_in_store(path)
    if digest is None:
        shutil.copyfile(path, target)
    return digest


def _keep_disk(layers: DiskLayers, number: int, folder: Path, *, snapshot: str) -> KeptDisk:
    names = [
        f"disk{number}{f'-below{depth}' if depth else ''}.{disk_format}"
        for depth, disk_format in enumerate(layers.formats)
    ]
    copy_all(layers, [folder / name for name in names])
    if layers.formats[0] == "qcow2":
        drop_snapshots(folder / names[0], but=snapshot)
    image = None if layers.image is None else digest_in_store(layers.image)
    return KeptDisk(files=tuple(names), formats=layers.formats, image=image)
