"""The oldest versions of QEMU, qemu-img and libvirt that will do: the project is tested with none older."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Literal

from pytest_kvm.errors import MissingDependency

Program = Literal["QEMU", "qemu-img", "libvirt"]

OLDEST: Mapping[Program, tuple[int, int, int]] = {
    "QEMU": (7, 2, 0),
    "qemu-img": (7, 2, 0),
    "libvirt": (9, 0, 0),
}

REMEDY = "use a newer distribution: Debian 12, Ubuntu 24.04, Fedora 38 and later ones have it"
"""What to do about a version that is too old."""
_VERSION = r"version (\d+(\.\d+)+)"


def version_in(text: str) -> str:
    """Return the version in what a program prints when it is asked for it, "7.2.22"; "" if there is none."""
    found = re.search(_VERSION, text)
    return found[1] if found else ""


def why_too_old(program: Program, version: str) -> str:
    """Say why a version will not do, as in "version 5.2.0; 7.2.0 is the oldest that will do"; "" if it will.

    Args:
        program: Whose version it is.
        version: Numbers with dots between them; "" for one that cannot be read.
    """
    oldest = OLDEST[program]
    numbers = tuple(map(int, version.split("."))) if version else ()
    if numbers and numbers >= oldest[: len(numbers)]:
        return ""
    seen = f"version {version}" if version else "an unknown version"
    return f"{seen}; {'.'.join(map(str, oldest))} is the oldest that will do"


def check_version(program: Program, version: str, *, where: str = "") -> None:
    """Check that a version will do.

    Args:
        program: Whose version it is.
        version: See :func:`why_too_old`.
        where: Tells in the error which one it is.

    Raises:
        MissingDependency: It is too old.
    """
    if why := why_too_old(program, version):
        raise MissingDependency(f"{program}{f' ({where})' if where else ''} is {why}", resolution=REMEDY)
