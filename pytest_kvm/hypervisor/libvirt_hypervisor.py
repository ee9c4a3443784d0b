"""An open libvirt connection: starts domains, lists them and follows their life-cycle events."""

from __future__ import annotations

import copy
import os
import threading
import xml.etree.ElementTree as ET
from collections.abc import Callable, Generator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from functools import partial
from pathlib import Path

import libvirt
import psutil

from pytest_kvm.errors import ConnectionFailed, DomainFailed, KvmError
from pytest_kvm.host.qemu_process import HostProcess
from pytest_kvm.hypervisor import libvirt_connection, libvirt_networks, qemu_log
from pytest_kvm.hypervisor.capabilities import host_facts
from pytest_kvm.hypervisor.domain import LibvirtDomain
from pytest_kvm.hypervisor.embed import EmbedRoot, embed_root, is_embed
from pytest_kvm.hypervisor.fork_guard import ProcessBound
from pytest_kvm.hypervisor.libvirt_errors import translated
from pytest_kvm.hypervisor.lifecycle import Lifecycle, disk_failure
from pytest_kvm.hypervisor.protocol import Domain, HostFacts
from pytest_kvm.hypervisor.snapshots import start_from_snapshot
from pytest_kvm.waiting import NotYet, wait_until

_DEATH_IS_SEEN_WITHIN = 2.0
_SETTLED_WITHIN = 5.0
_FORGOTTEN_WITHIN = 30.0
_LOOK_EVERY = 0.01
_NAME_IS_TAKEN = (libvirt.VIR_FROM_DOMAIN, libvirt.VIR_ERR_OPERATION_FAILED)
"""Raised by ``virDomainObjListAdd`` in ``src/conf/virdomainobjlist.c``. The error is recognised
by its codes, because libvirt translates its text."""
_SHUT_DOWN = (libvirt.VIR_DOMAIN_EVENT_STOPPED, libvirt.VIR_DOMAIN_EVENT_STOPPED_SHUTDOWN)


def connect(uri: str, *, run_dir: Path, cache_dir: Path) -> LibvirtHypervisor:
    """Open a connection; see :func:`pytest_kvm.hypervisor.connect.open_hypervisor`."""
    if not is_embed(uri):
        return LibvirtHypervisor(libvirt_connection.open_connection(uri), root=None)
    process = os.getpid()
    if process in _failures:
        raise copy.copy(_failures[process])  # each caller's has a traceback of its own
    try:
        return _connect_embedded(process, embed_root(uri, run_dir=run_dir, cache_dir=cache_dir))
    except BaseException as failure:
        if process not in _embedded:
            _failures[process] = _in_words(failure)
        raise


def _connect_embedded(process: int, root: EmbedRoot) -> LibvirtHypervisor:
    with root.watch.watching(), root.capabilities.shared():
        if process not in _embedded:
            hypervisor = LibvirtHypervisor(libvirt_connection.open_connection(root.uri), root=root)
            hypervisor.facts()  # has libvirt ask QEMU for its capabilities, unless they are known
            _embedded[process] = hypervisor
    return _embedded[process]


def _in_words(failure: BaseException) -> KvmError:
    if isinstance(failure, KvmError):
        return copy.copy(failure)  # without the traceback, which would keep what its frames hold
    return ConnectionFailed(
        f"libvirt's embedded driver could not be opened in this process: {failure!r}",
        resolution="start a new process: there is no second try in this one",
    )


_failures: dict[int, KvmError] = {}
"""Why the embedded driver could not be opened, by process id.

There is no second try: libvirt works in the folder of the first, which is gone with the failure.
"""
_embedded: dict[int, LibvirtHypervisor] = {}
"""The embedded driver's only connection, by process id, because a forked child has to open its own.

Each time it is opened, libvirt registers its drivers again, and after about ten
times it fails with "Too many drivers, cannot register QEMU". So the connection
is opened once and kept.
"""


class LibvirtHypervisor:
    """Implements :class:`pytest_kvm.hypervisor.protocol.Hypervisor`.

    Every method may be called from any thread.

    Args:
        connection: An open connection.
        root: The embedded driver's folder; None for every other driver.
    """

    def __init__(self, connection: ProcessBound[libvirt.virConnect], *, root: EmbedRoot | None) -> None:
        self._connection = connection
        self._root = root
        self._lock = threading.Lock()
        self._domains: dict[str, LibvirtDomain] = {}
        self._lives: dict[str, Lifecycle] = {}
        self._closed = False
        self._asking = threading.Lock()
        self._facts: HostFacts | None = None
        with translated("listen for domain events"):
            # libvirt.py leaves the callback's type open.
            self._callbacks = [
                connection.get().domainEventRegisterAny(None, event, callback, None)  # pyright: ignore[reportUnknownMemberType]
                for event, callback in (
                    (libvirt.VIR_DOMAIN_EVENT_ID_LIFECYCLE, self._on_event),
                    (libvirt.VIR_DOMAIN_EVENT_ID_REBOOT, self._on_reset),
                    (libvirt.VIR_DOMAIN_EVENT_ID_IO_ERROR_REASON, self._on_io_error),
                )
            ]
        libvirt_connection.on_lost(connection.get(), self._on_lost)

    def facts(self) -> HostFacts:
        """Return what the connection says about its host; only the first call asks libvirt.

        A later question could make libvirt ask QEMU again, which takes seconds.
        With the first domain libvirt may load a module that was installed after
        its QEMU driver, and then its cached answers look outdated
        (``virUpdateSelfLastChanged``).
        """
        with self._asking:
            if self._facts is None:
                self._facts = host_facts(self._connection.get())
            return self._facts

    def create(self, xml: str, *, paused: bool = False) -> LibvirtDomain:
        """Create and start a transient domain from its XML.

        Raises:
            DomainFailed: libvirt or QEMU refused; the details hold what QEMU printed.
            NetworkFailed: A card cannot be on its network of the host.
        """
        flags = libvirt.VIR_DOMAIN_START_PAUSED if paused else 0
        return self._start(xml, partial(_create_domain, xml=xml, flags=flags), doing="create")

    def create_from_snapshot(self, xml: str, *, snapshot: str, paused: bool = False) -> LibvirtDomain:
        """Start a transient domain from a snapshot that its disks hold; see :func:`start_from_snapshot`.

        Raises:
            StateDamaged: QEMU cannot load the snapshot.
            DomainFailed: libvirt or QEMU refused; the details hold what QEMU printed.
            NetworkFailed: A card cannot be on its network of the host.
        """
        start = partial(start_from_snapshot, xml=xml, snapshot=snapshot, paused=paused)
        return self._start(xml, start, doing="restore")

    def _start(self, xml: str, start: _Start, *, doing: str) -> LibvirtDomain:
        connection = self._connection.get()
        name = _name_in(xml)
        with self._registered(name) as life:
            doing = f"{doing} the domain {name}"
            logged = self._qemu_log_size(name)
            with (
                self._watching(),
                translated(doing, error=DomainFailed, details=lambda: self._qemu_log(name, since=logged)),
            ):
                raw = _start_when_name_is_free(connection, name, start)
                process = self._process_of(raw)
            log = self._root.qemu_log(name) if self._root else None
            domain = LibvirtDomain(self._connection, raw, lifecycle=life, process=process, xml=xml, log=log)
            with self._lock:
                self._domains[name] = domain
        return domain

    def create_network(self, xml: str) -> None:
        """Make a transient network; see :func:`libvirt_networks.create`."""
        libvirt_networks.create(self._connection.get(), xml)

    def remove_network(self, uuid: str) -> None:
        """Remove a network; see :func:`libvirt_networks.remove`."""
        libvirt_networks.remove(self._connection.get(), uuid)

    def domains(self) -> list[Domain]:
        """Return every running domain of the connection, also those that former processes started."""
        with translated("list domains"):
            found = self._connection.get().listAllDomains(libvirt.VIR_CONNECT_LIST_DOMAINS_ACTIVE)
        return [domain for domain in map(self._find_ours, found) if domain is not None and domain.alive()]

    def close(self) -> None:
        """Wait until libvirt has forgotten the domains that have ended, then close the connection.

        Domains that run are not touched. The embedded driver's connection
        stays open until the process ends.
        """
        with self._lock:
            ended = [life for life in self._lives.values() if not life.alive]
        for life in ended:
            life.wait_settled(_SETTLED_WITHIN)
        if self._root is not None or self._closed:
            return
        self._closed = True
        connection = self._connection.get()
        with translated("close the connection"):
            for callback in self._callbacks:
                connection.domainEventDeregisterAny(callback)
            connection.close()

    def _find_ours(self, raw: libvirt.virDomain) -> LibvirtDomain | None:
        """Return the domain of a listed libvirt object; None if it is still being created, or has ended."""
        name: str = raw.name()
        with self._lock:
            known = self._domains.get(name)
            if known is not None and known.uuid == raw.UUIDString():
                return known
            if name in self._lives:
                return None
            life = self._lives[name] = Lifecycle(name, autopsy=lambda: self._autopsy(name))
            domain = LibvirtDomain(self._connection, raw, lifecycle=life, process=self._process_of(raw))
            self._domains[name] = domain
        # If the domain ended before this point, no event will report its end.
        if not _is_active(raw):
            self._forget(life)
            return None
        return domain

    def _forget(self, life: Lifecycle) -> None:
        """Drop a domain, unless a newer domain has its name by now."""
        with self._lock:
            if self._lives.get(life.name) is life:
                del self._lives[life.name]
                self._domains.pop(life.name, None)

    @contextmanager
    def _registered(self, name: str) -> Generator[Lifecycle]:
        """Note the events of a domain that the block starts; forget the domain if the block fails."""
        life = Lifecycle(name, autopsy=lambda: self._autopsy(name))
        with self._lock:
            former = self._lives.get(name)
        # A late event of the former one's end would be taken for one of the new one's.
        if former is not None and not former.alive and not former.wait_settled(_FORGOTTEN_WITHIN):
            raise DomainFailed(
                f"{name} has ended, and libvirt did not remove it within {_FORGOTTEN_WITHIN:.0f} s",
                resolution="see libvirt's log for what it waits for",
            )
        with self._lock:
            former = self._lives.get(name)
            if former is not None and former.alive:
                raise DomainFailed(
                    f"a domain named {name} runs already on this connection",
                    resolution="give the guests different names, or destroy the first",
                )
            self._lives[name] = life
        try:
            yield life
        except BaseException:
            with self._lock:
                self._lives.pop(name, None)
            raise

    def _watching(self) -> AbstractContextManager[None]:
        return self._root.watch.watching() if self._root else nullcontext()

    def _process_of(self, raw: libvirt.virDomain) -> HostProcess | None:
        if self._root is not None:
            ours = self._root.watch.find_child(self._root.pidfile(raw.name()))
            if ours is not None:
                return ours
        return find_qemu(raw.UUIDString())

    def _qemu_log(self, name: str, *, since: int = 0) -> str:
        return qemu_log.tail(self._root.qemu_log(name), since=since) if self._root else ""

    def _qemu_log_size(self, name: str) -> int:
        """Return the size of the log, which a former domain of that name may have left."""
        return qemu_log.size(self._root.qemu_log(name)) if self._root else 0

    def _autopsy(self, name: str) -> str:
        with self._lock:
            domain = self._domains.get(name)
        how = domain.how_qemu_ended(_DEATH_IS_SEEN_WITHIN) if domain else "ended while it was started"
        said = self._qemu_log(name)
        return f"it {how}:\n{said}" if said else f"it {how}"

    def _on_event(
        self, _connection: object, raw: libvirt.virDomain, event: int, detail: int, _mine: object
    ) -> None:
        with self._lock:
            life = self._lives.get(raw.name())
        if life is None:
            return
        if (event, detail) == _SHUT_DOWN and self._root and life.alive:
            signalled = qemu_log.foreign_signal(self._root.qemu_log(life.name))
            if signalled:
                life.note_end(f"QEMU died: {signalled}")
        life.event(event, detail)
        if life.settled:
            self._forget(life)

    def _on_reset(self, _connection: object, raw: libvirt.virDomain, _mine: object) -> None:
        with self._lock:
            life = self._lives.get(raw.name())
        if life is not None:
            life.note_reset()

    def _on_io_error(
        self,
        _connection: object,
        raw: libvirt.virDomain,
        path: str,
        device: str,
        action: int,
        reason: str,
        _mine: object,
    ) -> None:
        """Process that QEMU could not read from or write to a disk's file."""
        name = raw.name()
        with self._lock:
            life, domain = self._lives.get(name), self._domains.get(name)
        if life is None or not life.alive or action != libvirt.VIR_DOMAIN_EVENT_IO_ERROR_PAUSE:
            return
        why = disk_failure(path, device=device, reason=reason)
        if domain is not None and domain.is_of(life):
            domain.give_up(why)
        else:
            life.give_up(why)  # its start fails now, and that removes it

    def _on_lost(self, reason: str) -> None:
        with self._lock:
            lives = list(self._lives.values())
        for life in lives:
            life.note_end(f"the connection to libvirt was lost: {reason}")


_Start = Callable[[libvirt.virConnect], libvirt.virDomain]


def _is_active(raw: libvirt.virDomain) -> bool:
    try:
        return bool(raw.isActive())
    except libvirt.libvirtError as failure:
        if failure.get_error_code() == libvirt.VIR_ERR_NO_DOMAIN:
            return False
        with translated(f"ask whether {raw.name()} runs"):
            raise


def _create_domain(connection: libvirt.virConnect, *, xml: str, flags: int) -> libvirt.virDomain:
    return connection.createXML(xml, flags)


def _start_when_name_is_free(connection: libvirt.virConnect, name: str, start: _Start) -> libvirt.virDomain:
    """Start a domain; try again while libvirt is removing an ended domain of the same name.

    libvirt reports a domain's end a moment before it removes the domain from
    its list (``processMonitorEOFEvent`` in ``src/qemu/qemu_driver.c``). So a
    start may fail because the name is taken. If a look-up by name then finds no
    domain, the name will soon be free.
    """

    def attempt() -> libvirt.virDomain:
        try:
            return start(connection)
        except libvirt.libvirtError as failure:
            problem = failure.get_error_domain(), failure.get_error_code()
            if problem != _NAME_IS_TAKEN or _is_listed(connection, name):
                raise
            raise NotYet(str(failure)) from None

    return wait_until(
        attempt, describe=f"libvirt to forget the former {name}", timeout=_SETTLED_WITHIN, every=_LOOK_EVERY
    )


def _is_listed(connection: libvirt.virConnect, name: str) -> bool:
    try:
        connection.lookupByName(name)
    except libvirt.libvirtError as failure:
        if failure.get_error_code() != libvirt.VIR_ERR_NO_DOMAIN:
            raise
        return False
    return True


def _name_in(xml: str) -> str:
    try:
        name = ET.fromstring(xml).findtext("name")  # noqa: S314 - rendered by us, or by the user's own hook
    except ET.ParseError as problem:
        raise DomainFailed(f"the domain's XML does not parse: {problem}", details=xml) from None
    if not name:
        raise DomainFailed("the domain's XML has no <name>", details=xml)
    return name


def find_qemu(uuid: str) -> HostProcess | None:
    """Return the QEMU process of a domain, None if it is not on this host.

    libvirt does not tell the pid, but it puts ``-uuid`` on QEMU's command line.
    """
    for process in psutil.process_iter(["cmdline"]):
        arguments: list[str] = process.info["cmdline"] or []
        if uuid in arguments and arguments[arguments.index(uuid) - 1] == "-uuid":
            with suppress(ProcessLookupError, psutil.NoSuchProcess):
                return HostProcess(process.pid)
    return None
