"""``Disk``: a disk that a guest has beside its root disk."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Literal

from pytest_kvm.errors import SpecError
from pytest_kvm.sizes import parse_kib
from pytest_kvm.spec.value import check_choice, put, spec_value

Bus = Literal["virtio", "scsi", "sata", "usb"]
DiskFormat = Literal["qcow2", "raw"]
_SERIAL = re.compile(r"[A-Za-z0-9_.+-]{1,20}")


@spec_value
class Disk:
    """An extra disk: blank with a size, or the content of a host file.

    A host file is never written to: the guest gets an overlay on top of it.
    """

    size: str | None = None
    """Size of a blank disk ("2GiB"). With ``file`` it is the overlay's, which may exceed the file's."""
    file: str | Path | None = None
    """A qcow2 or raw file on the host whose content the guest sees."""
    bus: Bus = "virtio"
    format: DiskFormat = "qcow2"
    """Format of a blank disk's file. Raw disks cannot be part of an internal snapshot."""
    serial: str | None = None
    """Serial number, as in the guest's ``/dev/disk/by-id/``: at most 20 characters (virtio-blk's limit)."""
    readonly: bool = False

    def __post_init__(self) -> None:
        """Check that the fields make a disk."""
        if self.size is None and self.file is None:
            raise SpecError(
                "Disk: neither size nor file is given", resolution='write Disk(size="1GiB") or Disk(file=…)'
            )
        if self.size is not None:
            parse_kib(self.size, field="Disk.size")
        if self.file is not None:
            put(self, "file", Path(self.file))
        check_choice(self.bus, Bus, field="Disk.bus")
        check_choice(self.format, DiskFormat, field="Disk.format")
        if self.serial is not None and not _SERIAL.fullmatch(self.serial):
            raise SpecError(
                f"Disk.serial: {self.serial!r} does not fit",
                resolution="1 to 20 characters out of A-Z a-z 0-9 _ . + -",
            )
