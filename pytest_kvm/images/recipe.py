"""The recipes of the images that can be built from packages."""

from __future__ import annotations

from dataclasses import dataclass

FORMAT = 9
"""Version of the build steps. Raise the number when the same recipe gives a different image from
now on: then old images are built again."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """One image built from Debian packages."""

    name: str
    suite: str
    """Debian's codename of the release."""
    packages: tuple[str, ...]
    lean: bool = True
    """False: Debian's initramfs and defaults, nothing masked; for comparison only."""

    @property
    def cmdline(self) -> str:
        """Kernel arguments besides those for the root and the console."""
        return "rw" if self.lean else "ro"

    @property
    def version(self) -> str:
        """The recipe's version, which changes when the image built from it would change."""
        return f"{self.suite}/{FORMAT}"

    def outdates(self, version: str | None) -> bool:
        """Say whether an image of that version is to be built again.

        An image that a later version of the plugin built is not: else two
        plugin versions that share a cache would replace each other's images
        for ever.
        """
        suite, _, number = (version or "").partition("/")
        return suite != self.suite or not number.isdecimal() or int(number) < FORMAT


_SYSTEM = (
    "ca-certificates",
    "cloud-guest-utils",
    "cloud-init",
    "curl",
    "dbus",
    "fdisk",
    "iproute2",
    "iputils-ping",
    "kmod",
    "linux-image-cloud-amd64",
    "netbase",
    "nftables",
    "openssh-server",
    "procps",
    "qemu-guest-agent",
    "sudo",
    "systemd-resolved",
    "systemd-sysv",
    "udev",
)
_LEAN = (*_SYSTEM, "tiny-initramfs")
_STOCK = (*_SYSTEM, "initramfs-tools")

_RECIPES = {
    recipe.name: recipe
    for recipe in (
        Recipe(name="debian-13", suite="trixie", packages=_LEAN),
        Recipe(name="debian-12", suite="bookworm", packages=_LEAN),
        Recipe(name="debian-13-stock", suite="trixie", packages=_STOCK, lean=False),
        Recipe(name="debian-12-stock", suite="bookworm", packages=_STOCK, lean=False),
    )
}


def known_names() -> tuple[str, ...]:
    """Return the names of images that can be built; cheap, because no file is opened."""
    return tuple(sorted(_RECIPES))


def recipe_for(name: str) -> Recipe | None:
    """Return the recipe of a name, None when there is none."""
    return _RECIPES.get(name)
