"""Check that a built image has what a guest needs, before the image is stored.

A build step may fail without an error. Then the guests of the image fail
without an error, too: a guest whose kernel cannot read the seed has no network
and no user, and cannot tell why.
"""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterator
from pathlib import Path

from pytest_kvm.errors import ImageError

_ELF = b"\x7fELF"
_PACKED = {".xz": b"\xfd7zXZ\x00", ".zst": b"\x28\xb5\x2f\xfd", ".gz": b"\x1f\x8b"}
_BZIMAGE_AT, _BZIMAGE = 0x202, b"HdrS"
_CPIO = b"070701"

_FOR_THE_SEED = ("cdrom", "isofs", "sr_mod", "virtio_net", "virtio_scsi")
"""Modules that a guest needs to read its seed and to reach its network."""
DATASOURCE = "usr/lib/python3/dist-packages/cloudinit/sources/DataSourceNoCloud.py"


def check(root: Path, *, kernel: Path, initrd: Path, initrd_modules: tuple[str, ...]) -> None:
    """Check the files that a build has made.

    Args:
        root: The root filesystem.
        kernel: The kernel for direct boot.
        initrd: Its initrd.
        initrd_modules: Modules that the initrd must have, unless the kernel has them built in;
            empty if the release's own tools choose the initrd's modules.

    Raises:
        ImageError: Something is absent, empty or damaged; the details name all of it.
    """
    modules = root / "lib/modules" / _on_disk(root, "vmlinuz").name.removeprefix("vmlinuz-")
    problems = [
        *_kernel_problems(kernel),
        *_module_problems(modules),
        *_initrd_problems(initrd, [name for name in initrd_modules if name not in _built_in(modules)]),
        *([] if _on_disk(root, "initrd.img").stat().st_size else ["the initrd on the disk is empty"]),
        *([] if (root / DATASOURCE).is_file() else ["cloud-init has no datasource NoCloud"]),
    ]
    if problems:
        raise ImageError(
            f"the image was built, and guests could not start from it: {problems[0]}",
            details="\n".join(problems),
            resolution="nothing was stored; build again with -v, and report it if it comes back",
        )


def _on_disk(root: Path, link: str) -> Path:
    """Return the file that a link in a root filesystem leads to, as a path on this host."""
    return root / (root / link).readlink()


def _kernel_problems(kernel: Path) -> Iterator[str]:
    head = kernel.read_bytes()[: _BZIMAGE_AT + len(_BZIMAGE)]
    if not head.startswith(_ELF) and head[_BZIMAGE_AT:] != _BZIMAGE:
        yield "the kernel is no kernel"


def _module_problems(modules: Path) -> Iterator[str]:
    """Check the modules that every boot loads: those for the seed, and all that are below ``updates/``."""
    by_name = {_name(line.partition(":")[0]): line for line in _lines(modules / "modules.dep")}
    wanted = [name for name in _FOR_THE_SEED if name not in _built_in(modules)]
    yield from [f"the kernel has no module {name}" for name in wanted if name not in by_name]
    files = {modules / path for name in wanted for path in by_name.get(name, "").replace(":", " ").split()}
    files |= set((modules / "updates").glob("*.ko"))
    for path in sorted(files):
        magic = _PACKED.get(path.suffix, _ELF)
        if not path.is_file() or not path.read_bytes().startswith(magic):
            yield f"the kernel's module {path.relative_to(modules)} is absent, empty or damaged"


def _initrd_problems(initrd: Path, wanted: list[str]) -> Iterator[str]:
    content = initrd.read_bytes()
    if not content:
        yield "the initrd is empty"
    elif wanted:
        try:
            files = dict(_files_in(gzip.decompress(content)))
        except (OSError, EOFError, ValueError, zlib.error) as problem:
            yield f"the initrd is damaged: {problem}"
            return
        for name in wanted:
            if not files.get(f"{name}.ko", b"").startswith(_ELF):
                yield f"the initrd has no module {name}"


def _files_in(archive: bytes) -> Iterator[tuple[str, bytes]]:
    """Yield names and contents of a cpio archive (Linux' Documentation/driver-api/early-userspace)."""
    at = 0
    while archive[at : at + len(_CPIO)] == _CPIO:
        size, name_size = (int(archive[at + field : at + field + 8], 16) for field in (54, 94))
        content = _align(at + 110 + name_size)
        yield archive[at + 110 : at + 110 + name_size - 1].decode(), archive[content : content + size]
        at = _align(content + size)


def _align(offset: int) -> int:
    return -(-offset // 4) * 4


def _built_in(modules: Path) -> set[str]:
    return {_name(line) for line in _lines(modules / "modules.builtin")}


def _lines(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.is_file() else []


def _name(path: str) -> str:
    """Return a module's name as the kernel writes it (modprobe(8): underscores for hyphens)."""
    return Path(path).name.partition(".")[0].replace("-", "_")
