"""Build an image from packages: the build steps in their order."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from uuid import NAMESPACE_URL, uuid5

from pytest_kvm.errors import ImageError, NoCapacity
from pytest_kvm.host import command
from pytest_kvm.host.disk_space import why_no_space
from pytest_kvm.images import checks, disk_layout, kernel, namespace, qemu_img, rootfs, toolbox
from pytest_kvm.images.build_progress import BuildProgress
from pytest_kvm.images.image import Image, ImageManifest, digest_of
from pytest_kvm.images.image_store import MAKE_ROOM, ImageStore
from pytest_kvm.images.recipe import Recipe, recipe_for

_VERSIONS_OF = ("cloud-init", "linux-image-cloud-amd64", "openssh-server", "qemu-guest-agent", "systemd")
_SERIAL = "console=ttyS0"
_BUILD_MIB = 1200
"""MiB that the build of the smallest image takes at its fullest (measured)."""
_BUILD_FILES = 13_000
"""Files that it makes (measured)."""

Fill = Callable[[Path, str], None]
"""Makes the root filesystem; called with its folder and the UUID that it will have."""


def check_host() -> None:
    """Check that this host has what a build needs, before anything is downloaded.

    Raises:
        HostError: A program is absent, or this user may not make the namespaces.
    """
    command.require("unshare", "mmdebstrap", "qemu-img", "tar", "zstd")
    namespace.check()


def build(store: ImageStore, recipe: Recipe, *, work: Path, progress: BuildProgress) -> Image:
    """Build a recipe's image and publish it.

    Args:
        store: The store that gets the image.
        recipe: The recipe.
        work: A folder of :meth:`ImageStore.building`.
        progress: Called at each phase.

    Raises:
        HostError: A host program is absent or failed.
        NoCapacity: The store's disk has no room.
    """
    plan = _Plan(store=store, recipe=recipe, name=recipe.name, work=work, progress=progress)

    def fill(folder: Path, uuid: str) -> None:
        progress("downloading packages", None)
        rootfs.unpack(recipe, folder, uuid=uuid, temporary=plan.temporary, progress=progress)

    return plan.carry_out(fill)


def derive(
    store: ImageStore, base: Image, *, packages: Sequence[str], name: str, work: Path, progress: BuildProgress
) -> Image:
    """Build an image that has further packages, from a base image that was built from packages.

    Args:
        store: The store that has the base and gets the derived image.
        base: An image that was built from packages.
        packages: The packages to install.
        name: The derived image's name.
        work: A folder of :meth:`ImageStore.building`.
        progress: Called at each phase.

    Raises:
        ImageError: A package does not exist, or the base was not built from packages.
        HostError: A host program is absent or failed.
        NoCapacity: The store's disk has no room.
    """
    recipe = recipe_for(base.manifest.recipe or "")
    archive = base.manifest.rootfs
    if recipe is None or archive is None:
        raise ImageError(
            f"packages cannot be added to image {base.name}: it was not built from packages",
            resolution="let cloud-init install them, or use an image that pytest-kvm builds",
        )
    rootfs.check_names(packages)
    plan = _Plan(
        store=store,
        recipe=recipe,
        name=name,
        work=work,
        progress=progress,
        base=base.digest,
        packages=packages,
    )

    def fill(folder: Path, uuid: str) -> None:
        progress(f"adding {' '.join(packages)}", None)
        rootfs.extend(
            recipe,
            folder,
            archive=store.blob(archive),
            packages=packages,
            uuid=uuid,
            temporary=plan.temporary,
            progress=progress,
        )

    return plan.carry_out(fill)


@dataclass(frozen=True, kw_only=True)
class _Plan:
    """The inputs of one build, and its steps."""

    store: ImageStore
    recipe: Recipe
    name: str
    work: Path
    progress: BuildProgress
    base: str | None = None
    packages: Sequence[str] = ()

    @property
    def temporary(self) -> Path:
        """A folder for temporary files of the programs that the build runs."""
        return self.work / "tmp"

    def carry_out(self, fill: Fill) -> Image:
        """Run all steps, and return the published image.

        Raises:
            HostError: A host program is absent or failed.
            NoCapacity: The disk has no room.
        """
        check_host()
        if why := why_no_space(self.work, mib=_BUILD_MIB, files=_BUILD_FILES):
            raise NoCapacity(f"no room on the disk to make image {self.name}: {why}", resolution=MAKE_ROOM)
        self.temporary.mkdir()
        uuid = str(uuid5(NAMESPACE_URL, f"pytest-kvm:{self.name}:{self.recipe.version}"))
        cmdline = f"root=UUID={uuid} {self.recipe.cmdline}"
        root = self.work / "root"
        self.progress("fetching disk tools", None)
        tools = toolbox.unpack(self.recipe.suite, self.work / "tools", temporary=self.temporary)
        fill(root, uuid)
        (root / "boot/grub").mkdir(exist_ok=True)
        (root / "boot/grub/grub.cfg").write_text(disk_layout.menu(uuid, f"{cmdline} {_SERIAL}"))
        self.progress("making the disk", None)
        raw = self.work / "disk.raw"
        disk_layout.make(tools, root, disk=raw, uuid=uuid)
        files = {kind: self.work / kind for kind in ("disk", "kernel", "initrd", "rootfs")}
        qemu_img.to_qcow2(raw, files["disk"], source_format="raw")
        kernel.extract(root, kernel=files["kernel"], initrd=files["initrd"])
        checks.check(
            root,
            kernel=files["kernel"],
            initrd=files["initrd"],
            initrd_modules=rootfs.DIRECT_BOOT_MODULES if self.recipe.lean else (),
        )
        rootfs.archive(root, files["rootfs"])
        self.progress("storing the image", None)
        return self._publish(files, cmdline=cmdline, versions=rootfs.installed_versions(root, *_VERSIONS_OF))

    def _publish(self, files: dict[str, Path], *, cmdline: str, versions: dict[str, str]) -> Image:
        digests = {kind: digest_of(file) for kind, file in files.items()}
        manifest = ImageManifest(
            name=self.name,
            disk=digests["disk"],
            virtual_size=disk_layout.VIRTUAL_SIZE,
            created=datetime.now(tz=UTC).isoformat(timespec="seconds"),
            kernel=digests["kernel"],
            initrd=digests["initrd"],
            cmdline=cmdline,
            rootfs=digests["rootfs"],
            recipe=self.recipe.name,
            recipe_version=self.recipe.version,
            base=self.base,
            packages=tuple(self.packages),
            versions=versions,
        )
        return self.store.add(manifest, {digests[kind]: file for kind, file in files.items()})
