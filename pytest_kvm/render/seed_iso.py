"""Writes a seed's files as an ISO 9660 image; the only user of pycdlib.

cloud-init finds a NoCloud seed by the volume label ``cidata`` and a ConfigDrive
by ``config-2``
(https://docs.cloud-init.io/en/latest/reference/datasources/nocloud.html).
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import PurePosixPath

import pycdlib


def iso_bytes(label: str, files: Mapping[str, str]) -> bytes:
    """Return an ISO image with these files, readable by Joliet and Rock Ridge.

    Args:
        label: Volume label.
        files: Relative POSIX path to text.
    """
    iso = pycdlib.PyCdlib()
    iso.new(interchange_level=3, vol_ident=label, sys_ident="LINUX", joliet=3, rock_ridge="1.09")
    folders: dict[PurePosixPath, str] = {PurePosixPath("."): ""}
    for number, (name, text) in enumerate(sorted(files.items())):
        path = PurePosixPath(name)
        parent = _make_folders(iso, path.parent, folders)
        content = text.encode()
        # The format requires ISO 9660 names; Linux reads the Rock Ridge names.
        iso.add_fp(
            io.BytesIO(content),
            len(content),
            f"{parent}/F{number}.;1",
            rr_name=path.name,
            joliet_path=f"/{path}",
            file_mode=0o100400,
        )
    image = io.BytesIO()
    iso.write_fp(image)
    iso.close()
    return image.getvalue()


def _make_folders(iso: pycdlib.PyCdlib, folder: PurePosixPath, made: dict[PurePosixPath, str]) -> str:
    if folder in made:
        return made[folder]
    parent = _make_folders(iso, folder.parent, made)
    made[folder] = f"{parent}/D{len(made)}"
    iso.add_directory(made[folder], rr_name=folder.name, joliet_path=f"/{folder}")
    return made[folder]
