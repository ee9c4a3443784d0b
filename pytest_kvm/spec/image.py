"""``ImageRef``: the name of an image, optionally with its digest."""

from __future__ import annotations

import re
from dataclasses import field

from pytest_kvm.errors import SpecError
from pytest_kvm.spec.value import spec_value

_NAME = re.compile(r"[a-z0-9][a-z0-9._+-]{0,63}")
_DIGEST = re.compile(r"[0-9a-f]{8,64}")


@spec_value
class ImageRef:
    """An image of the store by its name, optionally pinned to its content by a digest."""

    name: str = field(kw_only=False)
    """Name of an image in the store, or of a recipe that can be built ("debian-13")."""
    digest: str | None = None
    """The first 8 to 64 hexadecimal digits of the disk's SHA-256; None accepts any content."""

    def __post_init__(self) -> None:
        """Check name and digest."""
        if not isinstance(self.name, str) or not _NAME.fullmatch(self.name):
            raise SpecError(
                f"ImageRef.name: {self.name!r} is not an image name",
                resolution="lower-case letters, digits and . _ + - (at most 64): `pytest-kvm images list`",
            )
        if self.digest is not None and not _DIGEST.fullmatch(self.digest):
            raise SpecError(f"ImageRef.digest: {self.digest!r} is not 8 to 64 lower-case hexadecimal digits")

    @classmethod
    def parse(cls, text: str) -> ImageRef:
        """Return the reference that a text stands for: ``name`` or ``name@digest``, as ``str()`` writes it.

        Raises:
            SpecError: The text is neither.
        """
        name, _, digest = text.partition("@")
        return cls(name, digest=digest or None)

    def __str__(self) -> str:
        """Return ``name`` or ``name@digest``."""
        return self.name if self.digest is None else f"{self.name}@{self.digest}"
