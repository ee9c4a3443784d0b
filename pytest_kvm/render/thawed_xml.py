"""Reads a frozen guest's domain XML, and puts into it what it has in another run."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from pytest_kvm.errors import SpecError
from pytest_kvm.render.domain_xml import METADATA_NAMESPACE, add_own_account, to_text
from pytest_kvm.render.qemu_args import QEMU_NAMESPACE, add_arguments

_COMMANDLINE = f"{{{QEMU_NAMESPACE}}}commandline"
_ARGUMENT = f"{{{QEMU_NAMESPACE}}}arg"
_RUN = f"metadata/{{{METADATA_NAMESPACE}}}run"
BOOT_FILES = ("kernel", "initrd", "nvram")
"""Elements below ``<os>`` that name files which a run, or an image, brings."""


class DomainDisk(NamedTuple):
    """A disk of a domain."""

    file: Path
    format: str
    is_written: bool
    """Whether the guest may write to it."""


@dataclass(frozen=True, kw_only=True)
class NewPlace:
    """What a frozen guest gets in place of what it had."""

    name: str
    uuid: str
    session: str
    """Id of the run."""
    owner_pid: int
    owner_started: float
    folder: Path
    """Of its sockets and logs."""
    disks: Sequence[Path]
    """In the order of :func:`disks_of`."""
    boot_files: Mapping[str, Path]
    """As :func:`boot_files_of` names them."""
    run_as: tuple[int, int] | None
    """User and group id that QEMU runs as; None: libvirt decides."""


def disks_of(xml: str) -> list[DomainDisk]:
    """Return the disks of a domain."""
    return [
        DomainDisk(Path(source.attrib["file"]), _format_of(disk), disk.find("readonly") is None)
        for disk, source in _file_disks(_parse(xml))
    ]


def other_disks_of(xml: str) -> list[str]:
    """Return the disks of a domain that are no files of this host, as their devices are called."""
    return [
        target.get("dev", "")
        for disk in _parse(xml).iterfind("devices/disk")
        if (source := disk.find("source")) is not None and "file" not in source.attrib
        for target in disk.iterfind("target")
    ]


def boot_files_of(xml: str) -> dict[str, Path]:
    """Return the other files that a domain starts from, as far as it has them: see :data:`BOOT_FILES`."""
    root = _parse(xml)
    found = {name: root.find(f"os/{name}") for name in BOOT_FILES}
    return {name: _file_of(element) for name, element in found.items() if element is not None}


def firmware_of(xml: str) -> Path | None:
    """Return the file of the firmware that a domain starts, if the XML names one."""
    path = _parse(xml).findtext("os/loader")
    return Path(path) if path else None


def needs_kvm(xml: str) -> bool:
    """Say whether a domain runs under KVM."""
    return _parse(xml).get("type") == "kvm"


def size_of(xml: str) -> tuple[int, int]:
    """Return the memory of a domain in MiB, and its virtual processors."""
    root = _parse(xml)
    try:
        # The live XML of libvirt counts in KiB.
        return int(root.findtext("memory", "")) // 1024, int(root.findtext("vcpu", "1"))
    except ValueError as mistake:
        raise SpecError(f"the XML of the domain tells no size: {mistake}") from None


def host_cards_of(xml: str) -> list[str]:
    """Return the MAC addresses of a domain's cards on networks of the host."""
    return [mac.get("address", "") for mac in _parse(xml).iterfind("devices/interface/mac")]


def thawed_xml(xml: str, place: NewPlace) -> str:
    """Return the XML of a domain that the state of a frozen one can be loaded into.

    Cables of its cards on segments lead nowhere.

    Args:
        xml: The live XML of the frozen domain.
        place: Where it goes on.

    Raises:
        SpecError: It is not what libvirt and the plugin have written.
    """
    domain = _parse(xml)
    domain.attrib.pop("id", None)
    devices, emulator = domain.find("devices"), domain.find("devices/emulator")
    if devices is not None and emulator is not None:
        devices.remove(emulator)  # libvirt chooses its own
    texts = {"name": place.name, "uuid": place.uuid, f"{_RUN}/{{{METADATA_NAMESPACE}}}session": place.session}
    for name, file in place.boot_files.items():
        _set_file(domain, name, file)
    for path, text in texts.items():
        _set_text(domain, path, text)
    owner = domain.find(f"{_RUN}/{{{METADATA_NAMESPACE}}}owner")
    if owner is not None:
        owner.attrib |= {"pid": f"{place.owner_pid}", "started": f"{place.owner_started:.2f}"}
    _keep_firmware(domain)
    _move_devices(domain, place)
    for label in domain.findall("seclabel"):
        domain.remove(label)
    if place.run_as is not None:
        add_own_account(domain, user=place.run_as[0], group=place.run_as[1])
    _move_arguments(domain)
    return to_text(domain)


def _parse(xml: str) -> ET.Element:
    try:
        return ET.fromstring(xml)  # noqa: S314 - libvirt wrote it; whoever resumes an artifact trusts it
    except ET.ParseError as mistake:
        raise SpecError(f"the XML of the domain cannot be read: {mistake}") from None


def _file_disks(domain: ET.Element) -> Iterator[tuple[ET.Element, ET.Element]]:
    """Yield each disk that is a file, with its ``<source>``."""
    for disk in domain.iterfind("devices/disk"):
        source = disk.find("source")
        if source is not None and "file" in source.attrib:
            yield disk, source


def _format_of(disk: ET.Element) -> str:
    driver = disk.find("driver")
    return "raw" if driver is None else driver.get("type", "raw")


def _file_of(element: ET.Element) -> Path:
    """Return the file that an element of ``<os>`` names, by its text or its ``<source>``."""
    source = element.find("source")
    return Path(source.get("file", "") if source is not None else (element.text or "").strip())


def _set_file(domain: ET.Element, name: str, file: Path) -> None:
    element = domain.find(f"os/{name}")
    if element is None:
        return
    source = element.find("source")
    if source is not None:
        source.set("file", str(file))
    else:
        element.text = str(file)


def _set_text(domain: ET.Element, path: str, text: str) -> None:
    found = domain.find(path)
    if found is not None:
        found.text = text


def _keep_firmware(domain: ET.Element) -> None:
    """Leave out what firmware libvirt was to choose: the XML of a running domain names it, too."""
    system = domain.find("os")
    if system is not None and system.find("loader") is not None:
        system.attrib.pop("firmware", None)
        for features in system.findall("firmware"):
            system.remove(features)


def _move_devices(domain: ET.Element, place: NewPlace) -> None:
    """Let disks, console and agent lead to the new place; each keeps its address in the guest."""
    disks = list(_file_disks(domain))
    if len(disks) != len(place.disks):
        raise SpecError(f"the XML of the domain has {len(disks)} disks, not {len(place.disks)}")
    for (disk, file), path in zip(disks, place.disks, strict=True):
        file.attrib = {"file": str(path)}
        for below in disk.findall("backingStore"):
            disk.remove(below)
    for device in domain.iterfind("devices/*"):
        alias, source, log = device.find("alias"), device.find("source"), device.find("log")
        if alias is not None and not alias.get("name", "").startswith("ua-"):
            device.remove(alias)
        if source is not None and device.get("type") == "unix":
            name = Path(source.get("path", "")).name
            source.attrib = {"mode": "bind", "path": str(place.folder / name)}
        if log is not None:
            log.attrib |= {"file": str(place.folder / Path(log.get("file", "")).name), "append": "on"}


def _move_arguments(domain: ET.Element) -> None:
    """Let memory be QEMU's own again, and cables lead nowhere."""
    commandline = domain.find(_COMMANDLINE)
    if commandline is None:
        return
    arguments = [each.get("value", "") for each in commandline.iterfind(_ARGUMENT)]
    domain.remove(commandline)
    if "-incoming" in arguments:
        at = arguments.index("-incoming")
        del arguments[at : at + 2]
    add_arguments(domain, [_move_argument(each, number) for number, each in enumerate(arguments)])


def _move_argument(argument: str, number: int) -> str:
    if not argument.startswith("{"):
        return argument
    try:
        thing: dict[str, Any] = json.loads(argument)
    except ValueError:
        return argument  # of the user's own
    if thing.get("qom-type") == "memory-backend-file":
        kept = ("id", "size", "x-use-canonical-path-for-ramblock-id")
        thing = {"qom-type": "memory-backend-ram", **{name: thing[name] for name in kept if name in thing}}
    elif thing.get("type") == "stream":
        thing = {"type": "hubport", "id": thing["id"], "hubid": number}
    return json.dumps(thing)
