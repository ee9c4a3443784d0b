"""What QEMU and libvirt can do on this host, with a cache of libvirt's answers for later processes.

libvirt starts QEMU two times to learn what a binary can do, which takes
seconds, and writes the answer below its cache folder. Each embed root has a
cache folder of its own, and libvirt rewrites the file in place. So the roots
do not share one folder: each root gets a copy of the stored answers, and new
answers are added to the store by rename. libvirt itself checks that an answer
is still valid: change times of QEMU and libvirt, host CPU, microcode and
kernel (``virQEMUCapsIsValid``).
"""

from __future__ import annotations

import filecmp
import logging
import os
import platform
import shutil
import threading
import xml.etree.ElementTree as ET
from collections.abc import Generator, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import libvirt

from pytest_kvm.errors import MissingDependency
from pytest_kvm.host.install_hints import install_hint
from pytest_kvm.host.locks import exclusive
from pytest_kvm.host.oldest_versions import check_version
from pytest_kvm.hypervisor.libvirt_errors import translated
from pytest_kvm.hypervisor.protocol import HostFacts

_log = logging.getLogger("pytest_kvm.hypervisor")
_BELOW_ROOT = Path("cache/qemu/capabilities")
_LONGEST_PROBE = 180.0


class CapabilityStore:
    """Store of libvirt's answers about QEMU's capabilities, shared by all runs of a user.

    Args:
        folder: The store's folder.
        root: The embed root whose libvirt uses the answers.
    """

    def __init__(self, *, folder: Path, root: Path) -> None:
        self._kept = folder
        self._used = root / _BELOW_ROOT
        self._lock = threading.Lock()
        self._done = False

    @contextmanager
    def shared(self) -> Generator[None]:
        """Copy the stored answers to the root; after the block, store what libvirt has learned in it.

        In the block the caller makes libvirt ask QEMU for its capabilities.
        If the store cannot be written to, nothing is stored.
        Only one thread at a time runs the block and, while the store is empty,
        only one process.
        """
        with self._lock:
            if self._done:
                yield
                return
            with self._alone_if_empty():
                self._load()
                yield
                with _working_without_store():
                    self._publish()
            self._done = True

    @contextmanager
    def _alone_if_empty(self) -> Generator[None]:
        with ExitStack() as stack:
            if not any(_answers(self._kept)):
                doing = "asking QEMU for its capabilities"
                lock = exclusive(self._kept / "probe.lock", describe=doing, timeout=_LONGEST_PROBE)
                with _working_without_store():
                    stack.enter_context(lock)
            yield

    def _load(self) -> None:
        self._used.mkdir(parents=True, exist_ok=True)
        for answer in _answers(self._kept):
            shutil.copyfile(answer, self._used / answer.name)

    def _publish(self) -> None:
        self._kept.mkdir(parents=True, exist_ok=True)
        for answer in _answers(self._used):
            kept = self._kept / answer.name
            if not kept.exists() or not filecmp.cmp(answer, kept, shallow=False):
                fresh = kept.with_name(f"{kept.name}.{os.getpid()}")
                shutil.copyfile(answer, fresh)
                fresh.replace(kept)


@contextmanager
def _working_without_store() -> Generator[None]:
    """Have a store that cannot be written to cost the next run a question, and no more."""
    try:
        yield
    except OSError as problem:
        _log.info("QEMU's capabilities are not kept for later runs: %s", problem)


def _answers(folder: Path) -> Iterator[Path]:
    return folder.glob("*.xml")


def host_facts(connection: libvirt.virConnect) -> HostFacts:
    """Return what a connection says about its host; this may take seconds if libvirt has to ask QEMU.

    Raises:
        MissingDependency: libvirt finds no QEMU there, or libvirt or QEMU is too old.
        HypervisorError: libvirt cannot tell.
    """
    with translated("ask the connection about its machine"):
        uri = connection.getURI()
        place = uri.partition("?")[0]
        libvirt_version = _version_text(connection.getLibVersion())
        check_version("libvirt", libvirt_version, where=place)
        known = _default_capabilities(connection, place)
        emulator = known.findtext("path") or ""
        qemu_version = _version_text(connection.getVersion())
        if emulator:  # the test driver has none
            check_version("QEMU", qemu_version, where=f"{emulator}, {place}")
        return HostFacts(
            uri=uri,
            hypervisor_version=qemu_version,
            library_version=libvirt_version,
            emulator=emulator,
            kvm=_offers_kvm(connection),
            uefi=any(value.text == "efi" for value in known.iterfind("os/enum[@name='firmware']/value")),
        )


def _default_capabilities(connection: libvirt.virConnect, place: str) -> ET.Element:
    try:
        return _capabilities(connection, kind=None)
    except libvirt.libvirtError as failure:
        # libvirt may choose the program: it can lack nothing else (virQEMUCapsCacheLookupDefault).
        if failure.get_error_code() != libvirt.VIR_ERR_CONFIG_UNSUPPORTED:
            raise
        host = urlsplit(place).hostname
        raise MissingDependency(
            f"libvirt finds no QEMU for {platform.machine()} ({place})",
            resolution=f"install QEMU on {host}" if host else install_hint("qemu-system"),
        ) from None


def _capabilities(connection: libvirt.virConnect, *, kind: str | None) -> ET.Element:
    """Return libvirt's domain capabilities for a domain type; empty if the driver has none (test driver)."""
    try:
        text = connection.getDomainCapabilities(None, platform.machine(), "q35", kind, 0)
    except libvirt.libvirtError as failure:
        if failure.get_error_code() != libvirt.VIR_ERR_NO_SUPPORT:
            raise
        return ET.Element("domainCapabilities")
    return ET.fromstring(text)  # noqa: S314 - libvirt's own


def _offers_kvm(connection: libvirt.virConnect) -> bool:
    try:
        return _capabilities(connection, kind="kvm").findtext("domain") == "kvm"
    except libvirt.libvirtError:
        return False


def _version_text(version: int) -> str:
    """Turn libvirt's 7002022 into "7.2.22"."""
    return f"{version // 1_000_000}.{version // 1000 % 1000}.{version % 1000}"
