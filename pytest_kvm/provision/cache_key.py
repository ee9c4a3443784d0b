"""The key of the boot cache: two guests with one key may be clones of one template.

The key is a digest of all that a guest can see: its domain XML and its seed, as
they are rendered for a boot, with placeholders for what the run chooses. Files
that they only name (kernels, disks, files) are in the key by their content.

In the key:

- the image's disk, and the kernel and initrd that are loaded: by digest;
- the domain XML: memory, processors, devices, kernel command line, and
  whatever the spec's ``xml`` hook makes of it; the files that a hooked XML
  names, by digest;
- the seed: users, files, commands, packages, time zone, network configuration,
  the host name where the spec says one;
- sizes of disks; for disks that show a host file, its path and the digest of
  the whole backing chain;
- of each card that is on no segment, the link state and the MAC address that the
  spec gives; of each that is on one, the model, and if that is not virtio the MAC
  address (:attr:`pytest_kvm.spec.nic.Nic.is_tied_to_mac`);
- the units that are waited for, and every prepare step: commands, scripts and
  host files by content;
- the renewal script;
- the host (:class:`MachineFacts`), and :data:`FORMAT`.

Not in the key, because no template depends on it: the guest's name and a host
name made of it, ``identity``, ``reset``, ``boot_timeout``, the image's name,
host ports, other MAC addresses the run chooses, which segment a card is on with its
addresses and its link state there, the run, its process and folders, time-outs
and limits.
"""

from __future__ import annotations

import hashlib
import json
import xml.etree.ElementTree as ET
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from pytest_kvm.host.versions import firmware_stamps, kernel, processor, stamp
from pytest_kvm.hypervisor.protocol import HostFacts
from pytest_kvm.images.image import Image
from pytest_kvm.machine import renewal_script
from pytest_kvm.provision.file_digests import disk_digests, file_digest, source_digest
from pytest_kvm.provision.machine_plan import direct_boot
from pytest_kvm.render.cloud_config import Identity
from pytest_kvm.render.domain_draft import DomainDraft
from pytest_kvm.render.plan import DirectBoot, DomainPlan
from pytest_kvm.render.seed import seed_files
from pytest_kvm.sizes import parse_kib
from pytest_kvm.spec.guest import GuestSpec
from pytest_kvm.spec.prepare import HostFile, PrepareStep, Script

FORMAT = 7
"""Raise it when templates change in a way that shows neither in the domain XML nor in the seed."""


@dataclass(frozen=True, kw_only=True)
class MachineFacts:
    """Facts of the host that a saved guest depends on."""

    accel: Literal["kvm", "tcg"]
    emulator: str
    """QEMU's path, size and time of change."""
    qemu_version: str
    libvirt_version: str
    firmware: tuple[str, ...]
    """Path, size and time of change of the firmware QEMU may load."""
    processor: str
    """The host's processor with microcode and features, which guests see under KVM; empty under TCG."""
    kernel: str
    """Release of the host's kernel, which KVM is a part of; empty under TCG."""


def machine_facts(facts: HostFacts, *, accel: Literal["kvm", "tcg"]) -> MachineFacts:
    """Return the facts of the host that a connection leads to; starts no process."""
    return MachineFacts(
        accel=accel,
        emulator=stamp(Path(facts.emulator)),
        qemu_version=facts.hypervisor_version,
        libvirt_version=facts.library_version,
        firmware=firmware_stamps(),
        processor=processor() if accel == "kvm" else "",
        kernel=kernel() if accel == "kvm" else "",
    )


def fingerprint(
    domain: DomainDraft, *, image: Image, machine: MachineFacts, tied_macs: Mapping[int, str]
) -> str:
    """Return the boot cache's key: SHA-256 in hexadecimal; the module says what is in it.

    If an ``xml`` hook returns a different domain each time (with a random number
    in it), each result has a template of its own.

    Args:
        domain: The guest's domain, with placeholders.
        image: The image that the guest boots from.
        machine: Facts of the host.
        tied_macs: MAC addresses of cards on segments that a template has to share with its clones, by
            index in the spec's ``nics``.

    Raises:
        SpecError: The spec does not fit the image, or a host file cannot be read.
        ImageError: A host file that the spec names as a disk is no disk image.
    """
    spec, placeholders = domain.spec, domain.placeholders
    parts: dict[str, Any] = {
        "format": FORMAT,
        "machine": asdict(machine),
        "image": [image.digest, _kib(spec.root_size)],
        "kernel": _kernel(image, direct_boot(spec, image, accel=machine.accel)),
        "domain": domain.xml,
        "files of the hook": {} if spec.xml is None else dict(_files_named(domain.xml)),
        "seed": seed_files(
            spec,
            _placeholder_identity(spec, placeholders),
            control_mac=placeholders.control_mac,
            nics=placeholders.nics,
            packages=spec.packages,
        ),
        "hostname": spec.hostname,
        "nics": [[nic.mac, nic.link] for nic in spec.nics if nic.segment is None],
        "cards on segments": [
            [nic.model, tied_macs.get(index)]
            for index, nic in enumerate(spec.nics)
            if nic.segment is not None
        ],
        "disks": list(_disks(spec)),
        "units": spec.units,
        "renewal": Path(renewal_script.__file__).read_text(encoding="utf-8"),
        "prepare": [_step(step, index=index) for index, step in enumerate(spec.prepare)],
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _placeholder_identity(spec: GuestSpec, placeholders: DomainPlan) -> Identity:
    return Identity(
        instance_id=placeholders.uuid,
        hostname=spec.hostname or "placeholder",
        authorized_key="placeholder",
        host_private_key="placeholder",
        host_public_key="placeholder",
    )


def _kernel(image: Image, direct: DirectBoot | None) -> list[str | None]:
    """Return the digests of the kernel and the initrd that QEMU loads."""
    if direct is None:
        return []
    own = {image.kernel: image.manifest.kernel, image.initrd: image.manifest.initrd}
    return [
        None if path is None else own.get(path) or file_digest(path, field=field)
        for path, field in ((direct.kernel, "GuestSpec.kernel"), (direct.initrd, "GuestSpec.initrd"))
    ]


def _disks(spec: GuestSpec) -> Iterator[list[Any]]:
    for index, disk in enumerate(spec.disks):
        if disk.file is None:
            yield [_kib(disk.size)]
        else:
            # A template's overlay names the file by its path, so a moved file counts as another disk.
            file = Path(disk.file).absolute()
            digests = disk_digests(file, field=f"GuestSpec.disks[{index}].file")
            yield [_kib(disk.size), str(file), digests]


def _step(step: PrepareStep, *, index: int) -> list[Any]:
    field = f"GuestSpec.prepare[{index}]"
    if isinstance(step, Script):
        digest = (
            hashlib.sha256((step.content or "").encode()).hexdigest()
            if step.file is None
            else file_digest(Path(step.file), field=field)
        )
        return ["script", step.interpreter, digest]
    if isinstance(step, HostFile):
        # A path that ends with a slash takes the source's name.
        name = Path(step.source).absolute().name if step.path.endswith("/") else ""
        return ["file", step.path, name, step.mode, step.owner, source_digest(step, field=field)]
    return ["command", step]


def _files_named(domain: str) -> Iterator[tuple[str, str]]:
    """Yield the host files that a domain's XML names, each with its digest: an ``xml`` hook may add some."""
    for element in ET.fromstring(domain).iter():  # noqa: S314 - we have just written it
        for value in (element.text or "", *element.attrib.values()):
            if value.startswith("/") and Path(value).is_file():
                yield value, file_digest(Path(value), field="GuestSpec.xml")


def _kib(size: str | None) -> int | None:
    return None if size is None else parse_kib(size, field="size")
