"""Switching on a machine: a new one, which boots from its image, or one that has been off."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

from pytest_kvm.errors import DomainFailed
from pytest_kvm.host.run_records import MachineRecord, MachineState, now, write_machine
from pytest_kvm.host.ssh_keys import KeyPair, write_private
from pytest_kvm.hypervisor.protocol import Domain
from pytest_kvm.machine.console import Console
from pytest_kvm.machine.kernel_watch import KernelWatch
from pytest_kvm.machine.machine import Machine
from pytest_kvm.machine.port_forwards import forwarded_ports
from pytest_kvm.machine.savepoints import drop_former
from pytest_kvm.provision.disks import new_disks
from pytest_kvm.provision.guest_links import GuestLinks, close_ports, open_ports
from pytest_kvm.provision.machine_plan import new_identity, plan_domain
from pytest_kvm.provision.run_resources import RunResources
from pytest_kvm.provision.start_request import Place, StartRequest
from pytest_kvm.render.cloud_config import Identity
from pytest_kvm.render.plan import DomainPlan, RamFile
from pytest_kvm.render.qemu_args import card_id, user_netdev
from pytest_kvm.render.seed import seed_bytes
from pytest_kvm.ssh.access import Access
from pytest_kvm.ssh.shell import Shell

_SSH_PORT = 22
_LESS_PATIENT = 10
"""How many times sooner than other calls of the guest agent those for the kernel's log are given up."""


@dataclass(frozen=True, kw_only=True)
class BootFiles:
    """Where a machine that boots keeps its state, and the SSH key that may log in."""

    folder: Path
    """Folder for its disks and its seed ISO."""
    key: KeyPair
    """Its public half is put into the guest."""
    key_file: Path
    ram: Path | None = None
    """File that holds its memory; None: QEMU allocates the memory itself."""


@dataclass(frozen=True, kw_only=True)
class Powered:
    """A machine that was switched on, with its plan."""

    machine: Machine
    plan: DomainPlan


def power_on(
    resources: RunResources, request: StartRequest, *, stack: ExitStack, files: BootFiles | None = None
) -> Powered:
    """Make a machine and switch it on.

    Args:
        resources: What the run has opened.
        request: The machine that is asked for.
        stack: Undoes every step, last first; closing it removes the machine.
        files: Where its state goes; None: into the machine's folder, which is removed with it.

    Raises:
        SpecError: The spec does not fit the image.
        HypervisorError: libvirt refused the domain.
    """
    folder = stack.enter_context(guest_folder(resources, request.place))
    files = files or BootFiles(folder=folder, key=resources.key, key_file=resources.key_file)
    uuid, identity = new_identity(request.hostname, key=files.key)
    plan = plan_domain(resources, request, uuid=uuid, folder=folder)
    if files.ram is not None:
        plan = replace(plan, ram_file=RamFile(path=files.ram, shared=True, incoming=False))
    seed = _write_seed(request, plan, identity, into=files.folder)
    plan = replace(plan, disks=new_disks(request.spec, request.image, seed=seed, folder=files.folder))
    machine = _start_domain(
        resources,
        request,
        plan=plan,
        host_key=identity.host_public_key,
        key_file=files.key_file,
        stack=stack,
    )
    machine.domain.resume()
    return Powered(machine=machine, plan=plan)


def start_again(
    resources: RunResources, request: StartRequest, *, plan: DomainPlan, former: Machine, stack: ExitStack
) -> Machine:
    """Start a machine that has ended: what was in its memory is gone, all else is as it was; it is paused.

    Args:
        resources: What the run has opened.
        request: The machine that was asked for.
        plan: The machine's own, by which it was started.
        former: The machine as it was.
        stack: Undoes every step, last first, before the steps of the former start.

    Raises:
        HypervisorError: libvirt refused the domain; the machine stays off.
        SwitchFailed: The switch has ended.
    """
    former.shell.close()
    close_ports(resources.switch, plan)
    former.access.known_hosts.unlink(missing_ok=True)  # the guest's SSH will be at another port
    # Only a machine that a template is made of has its memory in a file of its own.
    ram_file = replace(plan.ram_file, incoming=False) if plan.ram_file and plan.ram_file.shared else None
    with ExitStack() as attempt:
        machine = _start_domain(
            resources,
            request,
            plan=replace(plan, ram_file=ram_file, continues_log=True),
            host_key=former.access.host_key,
            key_file=former.access.key_file,
            stack=attempt,
        )
        drop_former(machine, former.savepoints)
        stack.push(attempt.pop_all())
    machine.hosts_file.forget()  # the names are on its disk, unless its last writes were lost
    machine.console.beginning = former.console.beginning
    machine.kernel.go_on_from(former.kernel)
    return replace(machine, phases=former.phases)


def _start_domain(
    resources: RunResources,
    request: StartRequest,
    *,
    plan: DomainPlan,
    host_key: str,
    key_file: Path,
    stack: ExitStack,
) -> Machine:
    """Start the domain of a machine whose disks are there, and leave it paused."""
    open_ports(resources.switch, plan, stack=stack)
    domain = stack.enter_context(paused_domain(resources, request.domain.filled_in(plan)))
    apply_link_state(domain, request)
    machine = assemble_machine(
        resources, request, plan=plan, domain=domain, host_key=host_key, key_file=key_file
    )
    stack.callback(machine.shell.close)
    machine.links.attach(machine)
    return machine


@contextmanager
def guest_folder(resources: RunResources, place: Place) -> Iterator[Path]:
    """Make a folder for one guest's files and remove it afterwards."""
    folder = resources.folder / str(place)
    folder.mkdir(mode=0o700)
    try:
        yield folder
    finally:
        # libvirt unlinks a dead QEMU's sockets at a time of its own, maybe
        # while rmtree() runs: a file that is gone already is no error.
        while folder.exists():
            with suppress(FileNotFoundError):
                shutil.rmtree(folder)


@contextmanager
def destroying(domain: Domain) -> Iterator[Domain]:
    """Destroy a domain afterwards."""
    try:
        yield domain
    finally:
        domain.destroy()


def paused_domain(resources: RunResources, xml: str) -> AbstractContextManager[Domain]:
    """Start a paused domain; destroy it afterwards."""
    return destroying(resources.hypervisor.create(xml, paused=True))


def _write_seed(request: StartRequest, plan: DomainPlan, identity: Identity, *, into: Path) -> Path:
    # Before a template has its clones, nobody knows the addresses of its cards on segments.
    joined = [nic for nic in plan.segment_nics if nic.is_configured] if request.nics else []
    nics = [*plan.nics, *joined]
    content = seed_bytes(
        request.spec, identity, control_mac=plan.control_mac, nics=nics, packages=request.packages_left
    )
    return write_private(into / "seed.iso", content)


def apply_link_state(domain: Domain, request: StartRequest) -> None:
    """Set the link of lone cards down if the spec says so.

    libvirt does it for the cards in its XML, and cards on segments have the links of their guest.
    """
    lone = [nic for nic in request.spec.nics if not nic.is_shared]
    for index, nic in enumerate(lone, start=1):
        if nic.link == "down":
            domain.qmp("set_link", {"name": card_id(user_netdev(index)), "up": False})


def _record(request: StartRequest, plan: DomainPlan, access: Access) -> None:
    record_machine(
        plan.console_log.parent,
        access,
        domain=plan.name,
        guest=request.name,
        state=request.place.state_at_start,
        image=request.image.name,
        memory_mib=request.spec.memory_kib // 1024,
        vcpus=request.spec.vcpus,
    )


def access_to(
    domain: Domain, *, guest: str, folder: Path, user: str, host_key: str, key_file: Path
) -> Access:
    """Return how to log in to a domain's guest by SSH; its host key is written into the machine's folder.

    Raises:
        DomainFailed: QEMU forwards no port to the guest's SSH.
    """
    ports = forwarded_ports(domain, _SSH_PORT)
    if not ports:
        raise DomainFailed(
            f"{guest}: QEMU forwards no port to the guest's SSH",
            resolution="an xml hook must keep the arguments in <qemu:commandline>",
        )
    port = ports.pop()
    return Access(
        port=port,
        key_file=key_file,
        host_key=host_key,
        known_hosts=write_private(folder / "known_hosts", f"[127.0.0.1]:{port} {host_key}\n"),
        user=user,
    )


def record_machine(
    folder: Path,
    access: Access,
    *,
    domain: str,
    guest: str,
    state: MachineState,
    image: str,
    memory_mib: int,
    vcpus: int,
) -> None:
    """Tell those who look from outside of a machine; see :mod:`~pytest_kvm.host.run_records`."""
    record = MachineRecord(
        guest=guest,
        state=state,
        since=now(),
        domain=domain,
        image=image,
        memory_mib=memory_mib,
        vcpus=vcpus,
        user=access.user,
        port=access.port,
        key_file=str(access.key_file),
        host_key=access.host_key,
        known_hosts=str(access.known_hosts),
    )
    write_machine(folder, record)


def assemble_machine(
    resources: RunResources,
    request: StartRequest,
    *,
    plan: DomainPlan,
    domain: Domain,
    host_key: str,
    key_file: Path,
) -> Machine:
    """Return the machine of a domain that has not run yet: its console, its SSH access and its folder.

    Raises:
        DomainFailed: QEMU forwards no port to the guest's SSH.
    """
    boot_timeout = request.spec.boot_timeout
    timeouts = resources.timeouts if boot_timeout is None else replace(resources.timeouts, boot=boot_timeout)
    folder = plan.console_log.parent
    access = access_to(
        domain,
        guest=request.name,
        folder=folder,
        user=request.spec.login,
        host_key=host_key,
        key_file=key_file,
    )
    request.room.note_process(domain.pid)
    _record(request, plan, access)
    shell = Shell(
        access,
        log=request.log,
        timeouts=timeouts,
        is_alive=domain.alive,
        end_reason=domain.end_reason,
        clock=domain.clock,
    )
    console = Console(plan.console_log, plan.console_socket, ended=domain.end_reason, clock=domain.clock)
    return Machine(
        name=request.name,
        domain=domain,
        shell=shell,
        console=console,
        kernel=KernelWatch(console, domain, patience=timeouts.agent / _LESS_PATIENT),
        access=access,
        folder=folder,
        links=GuestLinks(request.nics),
        timeouts=timeouts,
        log=request.log,
    )
