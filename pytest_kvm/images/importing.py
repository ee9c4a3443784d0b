"""Import an existing disk into the store, from a file or by download.

A download is resumed where it broke off. Only a complete download is imported.
"""

from __future__ import annotations

import http.client
import urllib.error
import urllib.request
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, cast

from pytest_kvm.errors import DownloadFailed, ImageError
from pytest_kvm.host.disk_space import is_full_disk
from pytest_kvm.images import qemu_img
from pytest_kvm.images.build_progress import BuildProgress, silent
from pytest_kvm.images.image import Image, ImageManifest, digest_of, verify
from pytest_kvm.images.image_store import ImageStore
from pytest_kvm.images.recipe import recipe_for
from pytest_kvm.waiting import NotYet, wait_until


def take(
    store: ImageStore, source: str, *, name: str, sha256: str | None = None, progress: BuildProgress = silent
) -> Image:
    """Copy a qcow2 or raw disk into the store; guests boot it by firmware.

    Args:
        store: The store that gets the image.
        source: A file, or an ``http:`` or ``https:`` address.
        name: The new image's name; an image that has this name is replaced.
        sha256: The digest the file must have.
        progress: Called at each phase.

    Raises:
        ImageError: The source is no disk, or needs other files.
        ChecksumMismatch: The file has another digest than ``sha256``.
        DownloadFailed: The address cannot be downloaded.
        NoCapacity: The store's disk is full.
    """
    if recipe_for(name) is not None:
        raise ImageError(
            f"{name!r} is the name of an image that is built from packages",
            resolution="give the imported image another name",
        )
    with store.building(name) as work:
        file = _local(source, work, progress)
        if sha256 is not None:
            progress("checking the digest", None)
            verify(file, sha256)
        found = qemu_img.require_self_contained(file)
        progress("copying the disk", None)
        disk = work / "disk"
        qemu_img.to_qcow2(file, disk, source_format="qcow2" if found.format == "qcow2" else "raw")
        manifest = ImageManifest(
            name=name,
            disk=digest_of(disk),
            virtual_size=found.virtual_size,
            created=datetime.now(tz=UTC).isoformat(timespec="seconds"),
            source=source,
        )
        return store.add(manifest, {manifest.disk: disk})


def _local(source: str, work: Path, progress: BuildProgress) -> Path:
    """Return the source as a file on this host; download it if it is an address."""
    if is_address(source):
        fetch(source, work / "download", progress=progress)
        return work / "download"
    file = Path(source)
    if not file.is_file():
        raise ImageError(f"there is no file {source}", resolution="give the path of a qcow2 or raw disk")
    return file


_CHUNK = 1024 * 1024
_STALLED = 60.0
"""Seconds without a byte after which a connection is given up."""
_PERSEVERANCE = 600.0
"""Seconds during which a broken transfer is resumed."""
_AGAIN_AFTER = 2.0


def is_address(source: str) -> bool:
    """Say whether a source is an address rather than a file."""
    return source.startswith(("http://", "https://"))


def fetch(address: str, target: Path, *, progress: BuildProgress = silent) -> None:
    """Download a file; a transfer that breaks off is resumed.

    Args:
        address: ``http:`` or ``https:``; proxies come from the environment.
        target: The file to write; if the transfer fails, it holds the part that arrived.
        progress: Called with the part that has arrived.

    Raises:
        DownloadFailed: The server refuses, or the transfer keeps breaking off.
        OSError: The disk is full.
    """
    if not is_address(address):
        raise DownloadFailed(f"{address} is no http or https address")

    def attempt() -> None:
        try:
            _go_on(address, target, progress)
        except urllib.error.HTTPError as refusal:
            refusal.close()
            if refusal.code < http.client.INTERNAL_SERVER_ERROR:
                raise _failure(address, f"{refusal.code} {refusal.reason}") from None
            raise NotYet(f"{refusal.code} {refusal.reason}") from None
        except (OSError, http.client.HTTPException) as broken:
            if is_full_disk(broken):
                raise
            raise NotYet(f"{type(broken).__name__}: {broken}") from None

    wait_until(
        attempt,
        describe=f"the download of {address}",
        timeout=_PERSEVERANCE,
        every=_AGAIN_AFTER,
        error=DownloadFailed,
    )


def _go_on(address: str, target: Path, progress: BuildProgress) -> None:
    """Request the missing part of the file and append it; write the whole file if the server sends that."""
    have = target.stat().st_size if target.exists() else 0
    request = urllib.request.Request(address, headers={"Range": f"bytes={have}-"} if have else {})  # noqa: S310 - is_address
    try:
        reply = cast("http.client.HTTPResponse", urllib.request.urlopen(request, timeout=_STALLED))  # noqa: S310 - as above
    except urllib.error.HTTPError as refusal:
        if have and refusal.code == http.client.REQUESTED_RANGE_NOT_SATISFIABLE:
            # The server's file has changed: it is shorter than the part that we have.
            refusal.close()
            target.unlink()
            raise http.client.IncompleteRead(b"") from None
        raise
    with reply, target.open("ab" if reply.status == http.client.PARTIAL_CONTENT else "wb") as file:
        _copy(reply, file, progress)


def _copy(reply: http.client.HTTPResponse, file: IO[bytes], progress: BuildProgress) -> None:
    start = file.tell()
    announced = reply.headers.get("Content-Length")
    total = start + int(announced) if announced else None
    while chunk := reply.read(_CHUNK):
        file.write(chunk)
        progress("downloading", file.tell() / total if total else None)
    if total is not None and file.tell() < total:
        raise http.client.IncompleteRead(b"", total - file.tell())


def _failure(address: str, reason: str) -> DownloadFailed:
    return DownloadFailed(
        f"{address} cannot be downloaded: {reason}",
        resolution="check the address in a browser; proxies are taken from http_proxy and https_proxy",
    )
