"""How a guest comes to be: the order of a boot."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from uuid import uuid4

import psutil

from pytest_kvm.errors import DomainFailed, SpecError
from pytest_kvm.host.keys import KeyPair, write_private
from pytest_kvm.hypervisor.protocol import Domain
from pytest_kvm.images.image import Image
from pytest_kvm.machine.console import Console
from pytest_kvm.machine.machine import Machine
from pytest_kvm.machine.port_forwards import forwarded_ports
from pytest_kvm.provision.disks import made_disks
from pytest_kvm.provision.host import Host
from pytest_kvm.provision.identity import new_identity, new_mac
from pytest_kvm.render.cloud_config import Identity
from pytest_kvm.render.domain_xml import domain_xml
from pytest_kvm.render.plan import DirectBoot, DomainPlan, NicPlan, RamFile
from pytest_kvm.render.qemu_args import card_id, lone_netdev
from pytest_kvm.render.seed import seed_bytes
from pytest_kvm.spec.guest import GuestSpec
from pytest_kvm.ssh.access import Access
from pytest_kvm.ssh.shell import Shell

_SSH_PORT = 22


@dataclass(frozen=True, kw_only=True)
class Order:
    """What is asked for: one guest of this spec, from this image."""

    spec: GuestSpec
    name: str
    """What people call the guest."""
    place: str
    """Name of its folder and, behind the run's id, of its domain; no other has had it."""
    hostname: str
    image: Image
    packages_left: tuple[str, ...]
    """Packages that are not in the image: cloud-init installs them."""
    log: logging.Logger
    resets: bool = True
    """Whether it is put back between tests."""


@dataclass(frozen=True, kw_only=True)
class Outfit:
    """What a boot gets to keep its state in, and to be let in by."""

    key: KeyPair
    """Its public half is put into the guest."""
    key_file: Path
    files: Path
    """Folder of its disks and its seed."""
    ram: Path | None = None
    """File that holds its memory; None leaves that to QEMU."""


@dataclass(frozen=True, kw_only=True)
class Powered:
    """A guest that was switched on."""

    machine: Machine
    plan: DomainPlan
    identity: Identity


def powered_on(host: Host, order: Order, *, stack: ExitStack, outfit: Outfit | None = None) -> Powered:
    """Make a guest and switch it on.

    Args:
        host: What the run stands on.
        order: What is asked for.
        stack: Undoes every step, last first; closing it removes the guest.
        outfit: Where its state goes; None: where the guest goes, and with it.

    Raises:
        SpecError: The spec does not fit the image.
        HypervisorError: libvirt refused the domain.
    """
    folder = stack.enter_context(guest_folder(host, order.place))
    outfit = outfit or Outfit(key=host.key, key_file=host.key_file, files=folder)
    uuid, identity = new_identity(order.hostname, key=outfit.key)
    plan = planned(host, order, uuid=uuid, folder=folder)
    if outfit.ram is not None:
        plan = replace(plan, ram_file=RamFile(path=outfit.ram, shared=True))
    seed = _write_seed(order, plan, identity, into=outfit.files)
    plan = replace(plan, disks=made_disks(order.spec, order.image, seed=seed, folder=outfit.files))
    domain = stack.enter_context(running_domain(host, domain_xml(order.spec, plan)))
    pull_cables(domain, order.spec)
    machine = assembled(
        host, order, plan=plan, domain=domain, host_key=identity.host_public_key, key_file=outfit.key_file
    )
    stack.callback(machine.shell.close)
    domain.resume()
    return Powered(machine=machine, plan=plan, identity=identity)


@contextmanager
def guest_folder(host: Host, place: str) -> Iterator[Path]:
    """Make a folder for one guest's files and remove it afterwards."""
    folder = host.folder / place
    folder.mkdir(mode=0o700)
    try:
        yield folder
    finally:
        # libvirt unlinks a dead QEMU's sockets in its own time: what it took
        # from under us is gone as it should be.
        while folder.exists():
            with suppress(FileNotFoundError):
                shutil.rmtree(folder)


@contextmanager
def ending(domain: Domain) -> Iterator[Domain]:
    """Destroy a domain afterwards."""
    try:
        yield domain
    finally:
        domain.destroy()


def running_domain(host: Host, xml: str) -> AbstractContextManager[Domain]:
    """Start a paused domain; destroy it afterwards."""
    return ending(host.hypervisor.create(xml, paused=True))


def planned(host: Host, order: Order, *, uuid: str, folder: Path) -> DomainPlan:
    """Return a plan with everything but disks: names, addresses and sockets of one guest."""
    return DomainPlan(
        name=f"{host.session}-{order.place}",
        uuid=uuid,
        session=host.session,
        owner_pid=os.getpid(),
        owner_started=psutil.Process().create_time(),
        accel=host.accel,
        disks=(),
        control_mac=new_mac(),
        nics=[NicPlan(nic=nic, mac=nic.mac or new_mac()) for nic in order.spec.nics],
        console_log=folder / "console.log",
        console_socket=folder / "console.sock",
        direct_boot=direct_boot(order.spec, order.image, accel=host.accel),
        genid=str(uuid4()),
        run_as=(os.getuid(), os.getgid()) if host.is_system else None,
    )


def direct_boot(spec: GuestSpec, image: Image, *, accel: str) -> DirectBoot | None:
    """Return the kernel QEMU shall load, or None where the firmware boots the disk.

    Raises:
        SpecError: Direct boot is asked for and there is no kernel, or no command line for it.
    """
    kernel = spec.kernel or image.kernel
    if spec.boot == "firmware" or spec.firmware == "uefi":
        return None
    if spec.boot == "auto" and kernel is None and not spec.cmdline_extra:
        return None
    if kernel is None:
        raise SpecError(
            f"GuestSpec: direct boot of {image.name!r}, which brings no kernel",
            resolution='give kernel= and initrd=, or use boot="firmware" without cmdline_extra',
        )
    return DirectBoot(
        kernel=Path(kernel),
        initrd=Path(spec.initrd) if spec.initrd else (None if spec.kernel else image.initrd),
        cmdline=f"{spec.cmdline or _cmdline(spec, image, accel=accel)} {spec.cmdline_extra}".strip(),
    )


def _cmdline(spec: GuestSpec, image: Image, *, accel: str) -> str:
    if not image.cmdline:
        raise SpecError(
            f"GuestSpec.cmdline: nothing says where the root of {image.name!r} is",
            resolution='write cmdline="root=/dev/vda1 console=ttyS0" or what fits the image',
        )
    # The last console is /dev/console, where init reports; the screen comes
    # first so that a screenshot shows something.
    last = "hvc0" if spec.console == "virtio" else "ttyS0"
    # On a busy host a translated guest may miss the ticks by which the kernel
    # checks its timer, and panics: "IO-APIC + timer doesn't work!"
    # (Documentation/admin-guide/kernel-parameters.txt).
    timer = " no_timer_check" if accel == "tcg" else ""
    return f"{image.cmdline}{timer} console=tty0 console={last}"


def _write_seed(order: Order, plan: DomainPlan, identity: Identity, *, into: Path) -> Path:
    content = seed_bytes(
        order.spec, identity, control_mac=plan.control_mac, nics=plan.nics, packages=order.packages_left
    )
    return write_private(into / "seed.iso", content)


def pull_cables(domain: Domain, spec: GuestSpec) -> None:
    """Unplug the cards that libvirt does not know of; it does so itself for its own."""
    lone = [nic for nic in spec.nics if not nic.plugged]
    for index, nic in enumerate(lone, start=1):
        if nic.link == "down":
            domain.qmp("set_link", {"name": card_id(lone_netdev(index)), "up": False})


def assembled(
    host: Host, order: Order, *, plan: DomainPlan, domain: Domain, host_key: str, key_file: Path
) -> Machine:
    """Put together the handle's parts for a domain that has not run yet.

    Raises:
        DomainFailed: QEMU forwards no port to the guest's SSH.
    """
    ports = forwarded_ports(domain, _SSH_PORT)
    if not ports:
        raise DomainFailed(
            f"{order.name}: QEMU forwards no port to the guest's SSH",
            resolution="an xml hook must keep the arguments in <qemu:commandline>",
        )
    port = ports.pop()
    folder = plan.console_log.parent
    known_hosts = write_private(folder / "known_hosts", f"[127.0.0.1]:{port} {host_key}\n")
    access = Access(
        port=port, key_file=key_file, host_key=host_key, known_hosts=known_hosts, user=order.spec.login
    )
    shell = Shell(
        access,
        log=order.log,
        timeouts=host.timeouts,
        is_alive=domain.alive,
        end_reason=domain.end_reason,
        clock=domain.clock,
    )
    return Machine(
        name=order.name,
        domain=domain,
        shell=shell,
        console=Console(plan.console_log, plan.console_socket, ended=domain.end_reason, clock=domain.clock),
        access=access,
        folder=folder,
        timeouts=host.timeouts,
        log=order.log,
    )
