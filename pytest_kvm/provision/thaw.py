"""A frozen guest goes on from where it was, in a run of its own."""

from __future__ import annotations

import os
import shutil
from collections.abc import Generator, Mapping
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

import psutil

from pytest_kvm.errors import HostError, KvmUnavailable, UnknownImage
from pytest_kvm.host.artifact_store import hold
from pytest_kvm.host.disk_space import why_no_space
from pytest_kvm.host.limits import limits_of
from pytest_kvm.host.register import Register
from pytest_kvm.host.resources import disk_taken_mib
from pytest_kvm.host.run_token import new_run_token
from pytest_kvm.host.ssh_keys import write_private
from pytest_kvm.hypervisor.protocol import Domain
from pytest_kvm.images.disk_layers import DiskLayers, copy_all
from pytest_kvm.images.image_store import ImageStore
from pytest_kvm.machine.frozen_guest import (
    CONSOLE,
    DOMAIN_XML,
    KEY,
    FrozenGuest,
    KeptDisk,
)
from pytest_kvm.provision.admission import Admission
from pytest_kvm.provision.admission_rules import Amount
from pytest_kvm.provision.cold_boot import access_to, guest_folder, paused_domain, record_machine
from pytest_kvm.provision.disk_room import no_disk_room, run_disk_full_in_words
from pytest_kvm.provision.machine_plan import run_as
from pytest_kvm.provision.room import Tell
from pytest_kvm.provision.run_resources import (
    Lazy,
    RunResources,
    open_run_resources,
    qemu_overhead_mib,
)
from pytest_kvm.provision.start_request import Place, clean_name
from pytest_kvm.render.thawed_xml import NewPlace, firmware_of, needs_kvm, size_of, thawed_xml
from pytest_kvm.settings import Settings
from pytest_kvm.ssh.access import Access
from pytest_kvm.switch.client import Switch

_WRITTEN_MIB = 64
"""Room on the disk for what the guest writes."""


@dataclass(frozen=True, kw_only=True)
class ThawedGuest:
    """A guest that goes on."""

    domain: Domain
    access: Access
    console_log: Path
    """What its console showed, then and since."""


def check_images(frozen: FrozenGuest, settings: Settings) -> None:
    """Make sure that the images below a frozen guest's disks are there.

    Raises:
        UnknownImage: One is not in the store.
    """
    store = ImageStore.of(settings)
    for digest in sorted(frozen.from_store):
        if not store.blob(digest).is_file():
            name = f" ({frozen.image})" if frozen.image else ""
            raise UnknownImage(
                f"{frozen.guest} needs the image{name} that it was made from, and the cache has no file with "
                f"the SHA-256 {digest}",
                resolution="name the cache of the run that froze it with --kvm-cache-dir "
                f"(now {settings.cache_dir}); an image that was built anew is another one",
            )


@contextmanager
def thawed_guest(
    artifact: Path, settings: Settings, *, about: Mapping[str, str], tell: Tell
) -> Generator[ThawedGuest]:
    """Let a frozen guest go on, and remove it afterwards; the artifact stays as it is.

    Args:
        artifact: The folder that :func:`~pytest_kvm.machine.frozen_guest.freeze` has filled.
        settings: Where images and runs are, and which hypervisor is used.
        about: What ``pytest-kvm ps`` tells of the run.
        tell: Is told each step.

    Raises:
        SpecError: There is no frozen guest, or it is not complete.
        UnknownImage: An image that it needs is not in the store.
        HostError: This host cannot run it.
        NoCapacity: There is no room for it.
        DomainFailed: QEMU refused it.
        SnapshotFailed: QEMU cannot load its memory.
    """
    with ExitStack() as stack:
        if held := hold(artifact):
            stack.callback(held.release)
        frozen = FrozenGuest.read(artifact)
        guest = clean_name(frozen.guest)  # it becomes a folder's name
        check_images(frozen, settings)
        xml = (artifact / DOMAIN_XML).read_text(encoding="utf-8", errors="replace")
        memory_mib, vcpus = size_of(xml)
        resources = stack.enter_context(_resources(settings, about))
        check_host(frozen, resources, xml=xml)
        room = resources.admission.room(guest, Amount(memory_mib, vcpus, 1))
        stack.callback(room.release)
        room.wait(tell)
        check_images(frozen, settings)  # that may have taken long
        tell("copying its disks")
        folder = stack.enter_context(guest_folder(resources, Place(guest)))
        store = ImageStore.of(settings)
        xml = _moved_here(xml, frozen, artifact, resources=resources, store=store, folder=folder)
        tell("loading its memory")
        domain = stack.enter_context(paused_domain(resources, xml))
        room.note_process(domain.pid)
        domain.load_snapshot(frozen.snapshot)
        access = _access(domain, frozen, folder)
        record_machine(
            folder,
            access,
            domain=domain.name,
            guest=guest,
            state="running",
            image=frozen.image,
            memory_mib=memory_mib,
            vcpus=vcpus,
        )
        domain.resume()
        yield ThawedGuest(domain=domain, access=access, console_log=folder / CONSOLE)


@contextmanager
def _resources(settings: Settings, about: Mapping[str, str]) -> Generator[RunResources]:
    token = new_run_token()
    with closing(Lazy(lambda: closing(Switch(token)))) as switch:
        opened: list[RunResources] = []
        admission = Admission(
            Register(settings.limits_folder),
            limits_of(settings),
            timeout=lambda: opened[0].timeouts.admission,
            overhead=lambda: qemu_overhead_mib(opened[0] if opened else None),
        )
        with open_run_resources(settings, switch, admission=admission, token=token, about=about) as resources:
            opened.append(resources)
            yield resources


def check_host(frozen: FrozenGuest, resources: RunResources, *, xml: str) -> None:
    """Check that this host can run the guest, as far as that is known before it is tried.

    Raises:
        KvmUnavailable: It ran under KVM, and there is none here.
        HostError: QEMU is older than the one it ran in, or the firmware is missing.
    """
    if needs_kvm(xml) and resources.accel != "kvm":
        raise KvmUnavailable(
            f"{frozen.guest} ran under KVM, and cannot go on without",
            resolution="resume it on a host with KVM and the same kind of processor",
        )
    here = resources.hypervisor.facts().hypervisor_version
    if _series(here) < _series(frozen.qemu):
        raise HostError(
            f"{frozen.guest} ran in QEMU {frozen.qemu}, and an older one, here {here}, cannot go on with it",
            resolution="resume it on a host with that version, or a later one",
        )
    firmware = firmware_of(xml)
    if firmware is not None and not firmware.exists():
        raise HostError(f"{frozen.guest} needs the firmware {firmware}, and this host has none there")


def _series(version: str) -> list[int]:
    """Return the numbers of a version that tell what a QEMU can load: the third is for corrections."""
    return [int(number) for number in version.split(".")[:2]]


def _moved_here(
    xml: str,
    frozen: FrozenGuest,
    artifact: Path,
    *,
    resources: RunResources,
    store: ImageStore,
    folder: Path,
) -> str:
    """Copy a guest's files to its new folder, and return the XML of its new domain.

    Raises:
        NoCapacity: The disk has no room.
    """
    taken = disk_taken_mib(artifact / name for name in frozen.files)
    if why := why_no_space(folder, mib=taken + _WRITTEN_MIB):
        raise no_disk_room(frozen.guest, why)
    with run_disk_full_in_words(resources.folder, f"{frozen.guest}: no room on the disk"):
        disks = [_copy_disk(disk, artifact, folder, store=store) for disk in frozen.disks]
        boot_files = {name: store.blob(digest) for name, digest in frozen.boot_files.items() if digest}
        for name in (CONSOLE, *(frozen.boot_files.keys() - boot_files)):
            shutil.copyfile(artifact / name, folder / name)
        write_private(folder / KEY, (artifact / KEY).read_bytes())
    place = NewPlace(
        name=f"{resources.session}-{folder.name}",
        uuid=f"{uuid4()}",
        session=resources.session,
        owner_pid=os.getpid(),
        owner_started=psutil.Process().create_time(),
        folder=folder,
        disks=disks,
        boot_files={name: boot_files.get(name, folder / name) for name in frozen.boot_files},
        run_as=run_as(resources),
    )
    return thawed_xml(xml, place)


def _copy_disk(disk: KeptDisk, artifact: Path, folder: Path, *, store: ImageStore) -> Path:
    """Copy a disk's files, and return the one that the guest writes to."""
    layers = DiskLayers(
        files=tuple(artifact / name for name in disk.files),
        formats=disk.formats,
        image=None if disk.image is None else store.blob(disk.image),
    )
    copies = [folder / name for name in disk.files]
    copy_all(layers, copies)
    return copies[0]


def _access(domain: Domain, frozen: FrozenGuest, folder: Path) -> Access:
    return access_to(
        domain,
        guest=frozen.guest,
        folder=folder,
        user=frozen.login,
        host_key=frozen.host_key,
        key_file=folder / KEY,
    )
