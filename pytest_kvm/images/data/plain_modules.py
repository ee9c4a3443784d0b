"""Put uncompressed copies of kernel modules in front of the packaged ones (depmod.d(5): updates/).

Runs in the root filesystem that is being made, by the Python that cloud-init
brings, so that no program of the host takes part:

    python3 - KERNEL-VERSION MODULE...

A module that this kernel does not have, or has uncompressed, is passed over:
what an image cannot do without is looked for when it is finished.
"""

from __future__ import annotations

import lzma
import sys
from pathlib import Path

ELF = b"\x7fELF"


def main(version: str, *wanted: str) -> None:
    """Unpack what is wanted."""
    modules = Path("/lib/modules", version)
    updates = modules / "updates"
    updates.mkdir(exist_ok=True)
    for packed in (modules / "kernel").rglob("*.ko.xz"):
        name = packed.name.removesuffix(".ko.xz")
        if name in wanted:
            module = lzma.decompress(packed.read_bytes())
            if not module.startswith(ELF):
                raise SystemExit(f"{packed} is no kernel module")
            (updates / f"{name}.ko").write_bytes(module)


if __name__ == "__main__":
    main(*sys.argv[1:])
