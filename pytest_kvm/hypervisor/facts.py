"""What a connection says of its machine."""

from __future__ import annotations

import platform
import xml.etree.ElementTree as ET

import libvirt

from pytest_kvm.hypervisor.errors import translated
from pytest_kvm.hypervisor.protocol import HostFacts


def host_facts(connection: libvirt.virConnect) -> HostFacts:
    """Ask a connection; the first time may take seconds, while libvirt asks QEMU."""
    with translated("ask the connection about its machine"):
        known = _capabilities(connection, kind=None)
        return HostFacts(
            uri=connection.getURI(),
            hypervisor_version=_dotted(connection.getVersion()),
            library_version=_dotted(connection.getLibVersion()),
            emulator=known.findtext("path") or "",
            kvm=_offers_kvm(connection),
            uefi=any(value.text == "efi" for value in known.iterfind("os/enum[@name='firmware']/value")),
        )


def _capabilities(connection: libvirt.virConnect, *, kind: str | None) -> ET.Element:
    """Return what domains of a kind may use; nothing for a driver that does not say (the test driver)."""
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


def _dotted(version: int) -> str:
    """Turn libvirt's 7002022 into "7.2.22"."""
    return f"{version // 1_000_000}.{version // 1000 % 1000}.{version % 1000}"
