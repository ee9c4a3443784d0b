"""What is tried on a real QEMU, each in a process of its own; see test_hypervisor.py.

Run as ``python embed_cases.py CASE RUN_DIR CACHE_DIR``. The guests have no
disk and no kernel: their firmware finds nothing to boot, which is enough here
and takes no time.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path

import psutil

from pytest_kvm.errors import (
    AgentError,
    ConnectionFailed,
    DomainFailed,
    MissingDependency,
    SavepointRefused,
    SnapshotFailed,
)
from pytest_kvm.hypervisor.connect import open_hypervisor
from pytest_kvm.hypervisor.libvirt_log import logging_to
from pytest_kvm.hypervisor.protocol import DomainState

CASE, RUN_DIR, CACHE_DIR = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])

XML = """
<domain type='qemu' xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'>
  <name>{name}</name>
  <memory unit='MiB'>64</memory>
  <os><type arch='x86_64' machine='q35'>hvm</type></os>
  <features><acpi/></features>
  <devices>
    <channel type='unix'><target type='virtio' name='org.qemu.guest_agent.0'/></channel>
    <video><model type='vga'/></video>
    <memballoon model='none'/>
  </devices>
  {more}
</domain>
"""
BAD_ARGUMENT = "<qemu:commandline><qemu:arg value='-bogus'/></qemu:commandline>"


def xml(name, more=""):
    return XML.format(name=name, more=more)


def opened():
    return open_hypervisor("qemu:///embed", run_dir=RUN_DIR, cache_dir=CACHE_DIR)


def refused(error, call):
    try:
        call()
    except error as failure:
        return str(failure)
    raise AssertionError(f"{call} did not raise {error}")


def tell(pid):
    sys.stdout.write(json.dumps(pid))
    sys.stdout.flush()


def life():
    hypervisor = opened()
    facts = hypervisor.facts()
    assert facts.uri.startswith("qemu:///embed?root="), facts
    assert facts.emulator.endswith("qemu-system-x86_64"), facts
    domain = hypervisor.create(xml("web"), paused=True)
    assert domain.state() is DomainState.PAUSED
    domain.resume()
    assert domain.state() is DomainState.RUNNING
    assert hypervisor.facts() is facts, "asked again, libvirt may ask QEMU again"
    assert psutil.Process(domain.pid).ppid() == os.getpid()
    assert domain.qmp("query-status")["running"] is True
    assert domain.hmp("info status").startswith("VM status: running")
    assert domain.screenshot().startswith((b"\x89PNG", b"P6"))
    domain.send_keys([29, 56, 111])
    domain.inject_nmi()
    domain.reset()
    assert "has not been found" in refused(DomainFailed, lambda: domain.qmp("nonsense"))
    assert "agent" in refused(AgentError, lambda: domain.agent("guest-ping", timeout=1))
    assert "web runs already" in refused(DomainFailed, lambda: hypervisor.create(xml("web")))
    pid = domain.pid
    domain.destroy()
    domain.destroy()
    assert domain.end_reason() == "destroyed"
    assert not psutil.pid_exists(pid)
    again = hypervisor.create(xml("web"))
    assert again.alive()
    assert [other.name for other in hypervisor.domains()] == ["web"]
    again.destroy()
    hypervisor.close()
    assert hypervisor.domains() == []


def same_name():
    hypervisor = opened()
    busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(3 * os.cpu_count())]
    try:
        for _ in range(15):
            hypervisor.create(xml("web"), paused=True).destroy()
    finally:
        for process in busy:
            process.kill()
            process.wait()
    domain = hypervisor.create(xml("web"))
    assert "web runs already" in refused(DomainFailed, lambda: hypervisor.create(xml("web")))
    domain.destroy()


def death():
    hypervisor = opened()
    domain = hypervisor.create(xml("web"))
    heard = []
    domain.on_end(heard.append)
    os.kill(domain.pid, signal.SIGKILL)
    assert domain.wait_end(10)
    assert domain.end_reason() == "QEMU died: it was killed by signal 9 (Killed)", domain.end_reason()
    assert heard == [domain.end_reason()]
    assert "killed by signal 9" in refused(DomainFailed, domain.suspend)
    domain.destroy()


def told_to_quit():
    domain = opened().create(xml("web"))
    subprocess.run(["kill", str(domain.pid)], check=True)
    assert domain.wait_end(10)
    assert domain.end_reason().startswith("QEMU died: terminating on signal 15 from pid"), domain.end_reason()


def stopped():
    hypervisor = opened()
    import_module("pytest_kvm.hypervisor.call_watch")._LOOK_EVERY = 0.02
    for call in (
        lambda domain: domain.qmp("query-status"),
        lambda domain: domain.suspend(),
        lambda domain: domain.save_state(RUN_DIR.joinpath("state").open("wb")),
    ):
        domain = hypervisor.create(xml("web"))
        heard = []
        domain.on_end(heard.append)
        os.kill(domain.pid, signal.SIGSTOP)
        said = refused(DomainFailed, lambda call=call, domain=domain: call(domain))
        assert said == "web has ended: QEMU does not answer: its process was stopped (SIGSTOP) for 0 s", said
        assert heard == [domain.end_reason()]
        domain.destroy()
        assert not psutil.pid_exists(domain.pid)


def hung():
    domain = opened().create(xml("web"))
    module = import_module("pytest_kvm.hypervisor.call_watch")
    module._LOOK_EVERY, module._IDLE_LOOKS = 0.05, 10
    type(domain._process).is_stopped = False  # so it looks like one that waits for a lock of its own
    os.kill(domain.pid, signal.SIGSTOP)
    said = refused(DomainFailed, lambda: domain.qmp("query-status"))
    assert said.endswith("QEMU does not answer: it has neither read nor written for 0 s"), said
    domain.destroy()
    assert not psutil.pid_exists(domain.pid)


def bad_start():
    hypervisor = opened()
    started = time.monotonic()
    said = refused(DomainFailed, lambda: hypervisor.create(xml("web", BAD_ARGUMENT)))
    assert "invalid option" in said, said
    # Nobody collects a QEMU that failed: libvirt waits 40 s for it.
    assert time.monotonic() - started < 20
    hypervisor.create(xml("web")).destroy()


def many():
    hypervisor = opened()
    with ThreadPoolExecutor(4) as pool:
        domains = list(pool.map(lambda number: hypervisor.create(xml(f"guest{number}")), range(6)))
        assert len({domain.pid for domain in domains}) == 6
        assert len(hypervisor.domains()) == 6
        list(pool.map(lambda domain: domain.destroy(), domains))
    assert hypervisor.domains() == []
    hypervisor.close()
    for _ in range(30):  # libvirt itself fails the eleventh time: "Too many drivers"
        opened().close()
    assert psutil.Process().children() == []


def one_root():
    opened()
    elsewhere = "qemu:///embed?root=/tmp/elsewhere"
    call = lambda: open_hypervisor(elsewhere, run_dir=RUN_DIR, cache_dir=CACHE_DIR)  # noqa: E731
    assert "new process" in refused(ConnectionFailed, call)


def one_try():
    """An error of its own for each caller, as another thread may be telling of the first."""
    path, os.environ["PATH"] = os.environ["PATH"], "/nonexistent"
    said = refused(MissingDependency, opened)
    assert "finds no QEMU" in said, said
    os.environ["PATH"] = path
    shutil.rmtree(RUN_DIR)
    assert refused(MissingDependency, opened) == said
    failures = []
    for _ in range(2):
        try:
            opened()
        except MissingDependency as failure:
            failures.append(failure)
    assert failures[0] is not failures[1]


def interrupted():
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    with logging_to(RUN_DIR / "libvirt.log"):
        import_module("pytest_kvm.hypervisor.libvirt_hypervisor").LibvirtHypervisor = interrupt
    refused(KeyboardInterrupt, opened)
    shutil.rmtree(RUN_DIR)
    assert refused(ConnectionFailed, opened).splitlines() == [
        "libvirt's embedded driver could not be opened in this process: KeyboardInterrupt()",
        "→ start a new process: there is no second try in this one",
    ]


def fork():
    hypervisor = opened()
    domain = hypervisor.create(xml("web"))
    child = os.fork()
    if child == 0:
        refused(ConnectionFailed, domain.suspend)
        refused(ConnectionFailed, hypervisor.domains)
        sys.exit(0)  # with all destructors
    assert os.waitpid(child, 0)[1] == 0
    assert domain.state() is DomainState.RUNNING
    domain.destroy()


def abandon():
    domain = opened().create(xml("web"))
    tell(domain.pid)
    os.kill(os.getpid(), signal.SIGKILL)


def adopt():
    hypervisor = opened()
    (domain,) = hypervisor.domains()
    pid = domain.pid
    assert domain.qmp("query-status")["running"] is True
    domain.destroy()
    assert domain.end_reason() == "destroyed"
    hypervisor.close()
    tell(pid)


# A guest without a kernel has a state, too: a byte of its CMOS memory, and one of its disk.


def with_disk(name, path, *, disk_format="qcow2"):
    if not path.exists():
        subprocess.run(["qemu-img", "create", "-q", "-f", disk_format, path, "16M"], check=True)
    disk = (
        f"<disk type='file' device='disk'><driver name='qemu' type='{disk_format}'/>"
        f"<source file='{path}'/><target dev='vda' bus='virtio'/></disk><video>"
    )
    return xml(name).replace("<video>", disk)


DISK = "-d /machine/peripheral/virtio-disk0/virtio-backend"


def mark(domain, value):
    """Write a value into memory and disk."""
    with held(domain):
        domain.hmp("o /b 0x70 0x50")
        domain.hmp(f"o /b 0x71 {value}")
        domain.hmp(f'qemu-io {DISK} "write -q -P {value} 0 512"')
    assert marked(domain) == value


def marked(domain):
    """Read the value back; None if memory and disk hold different ones."""
    log = RUN_DIR / "v/log/qemu" / f"{domain.name}.log"
    with held(domain):
        domain.hmp("o /b 0x70 0x50")
        (value,) = re.findall(r"= 0x([0-9a-f]+)", domain.hmp("i /b 0x71"))
        said = log.stat().st_size
        domain.hmp(f'qemu-io {DISK} "read -P {int(value, 16)} 0 512"')  # tells QEMU's log what it found
    found = log.read_bytes()[said:].decode()
    assert "512/512" in found, found
    return None if "verification failed" in found else int(value, 16)


@contextmanager
def held(domain):
    """Keep the firmware from its own use of the CMOS memory."""
    running = domain.state() is DomainState.RUNNING
    if running:
        domain.suspend()
    yield
    if running:
        domain.resume()


def snapshots():
    domain = opened().create(with_disk("web", RUN_DIR / "web.qcow2"))
    for value in (1, 2, 3):
        mark(domain, value)
        domain.take_snapshot(f"s{value}")
        assert domain.state() is DomainState.RUNNING
    for value in (1, 3, 2, 2):
        mark(domain, 9)
        domain.load_snapshot(f"s{value}")
        assert (marked(domain), domain.state()) == (value, DomainState.PAUSED)
        domain.resume()
    assert "already exists" in refused(SnapshotFailed, lambda: domain.take_snapshot("s2"))
    domain.drop_snapshot("s2")
    assert "does not exist" in refused(SnapshotFailed, lambda: domain.load_snapshot("s2"))
    domain.suspend()
    domain.load_snapshot("s3")
    assert (marked(domain), domain.state()) == (3, DomainState.PAUSED)
    domain.take_snapshot("paused")
    domain.resume()
    domain.load_snapshot("paused")
    assert domain.state() is DomainState.PAUSED
    domain.destroy()


def snapshots_refused():
    hypervisor = opened()
    raw = hypervisor.create(with_disk("raw", RUN_DIR / "web.raw", disk_format="raw"))
    said = refused(SavepointRefused, lambda: raw.take_snapshot("s"))
    assert f"{RUN_DIR}/web.raw (raw)" in said, said
    raw.destroy()
    none = hypervisor.create(xml("none"))
    assert "without a disk" in refused(SavepointRefused, lambda: none.take_snapshot("s"))
    none.destroy()
    domain = hypervisor.create(with_disk("web", RUN_DIR / "web.qcow2"))
    mark(domain, 1)
    domain.take_snapshot("s")
    mark(domain, 2)
    card = {"driver": "virtio-rng-pci", "id": "late", "bus": "pcie.0", "addr": "0x18"}
    domain.qmp("object-add", {"qom-type": "rng-builtin", "id": "source"})
    said = refused(DomainFailed, lambda: domain.qmp("device_add", {**card, "rng": "source"}))
    assert "hotplug" in said, said  # the root bus takes none: one of the ports would
    domain.qmp("device_add", {"driver": "qemu-xhci", "id": "late", "bus": free_port(domain)})
    for look in (domain.check_snapshot, domain.load_snapshot):
        said = refused(SavepointRefused, lambda look=look: look("s"))
        assert "plugged in since: late (qemu-xhci)" in said, said
    assert (marked(domain), domain.state()) == (2, DomainState.RUNNING)
    domain.destroy()


def free_port(domain):
    """Return a PCIe port with nothing in it."""
    buses = domain.qmp("query-pci")[0]["devices"]
    return next(
        device["qdev_id"]
        for device in buses
        if "pci_bridge" in device and not device["pci_bridge"].get("devices")
    )


def revived():
    hypervisor = opened()
    former = hypervisor.create(with_disk("former", RUN_DIR / "former.qcow2"))
    mark(former, 1)
    former.take_snapshot("ours")
    mark(former, 2)
    former.save_libvirt_snapshot("libvirts")
    former.destroy()
    for name, value in (("ours", 1), ("libvirts", 2)):
        shutil.copy(RUN_DIR / "former.qcow2", RUN_DIR / f"{name}.qcow2")
        domain = hypervisor.create_from_snapshot(
            with_disk(name, RUN_DIR / f"{name}.qcow2"), snapshot=name, paused=True
        )
        assert (domain.state(), marked(domain)) == (DomainState.PAUSED, value)
        domain.resume()
        assert psutil.Process(domain.pid).ppid() == os.getpid()
        domain.take_snapshot("more")
        domain.load_snapshot("ours")
        assert (domain.state(), marked(domain)) == (DomainState.PAUSED, 1)
        domain.resume()
        if name == "ours":
            domain.destroy()
            assert domain.end_reason() == "destroyed"
    heard = []
    domain.on_end(heard.append)
    os.kill(domain.pid, signal.SIGKILL)
    assert domain.wait_end(10)
    assert [reason.partition(":\n")[0] for reason in heard] == [
        "QEMU died: it was killed by signal 9 (Killed)"
    ]
    hypervisor.close()
    assert hypervisor.domains() == []
    said = refused(
        DomainFailed,
        lambda: hypervisor.create_from_snapshot(with_disk("web", RUN_DIR / "web.qcow2"), snapshot="none"),
    )
    assert "does not exist" in said, said
    hypervisor.create(with_disk("web", RUN_DIR / "web.qcow2")).destroy()
    # libvirt removes the domain's folder meanwhile; os.walk() does not mind.
    assert [names for folder, _, names in os.walk(RUN_DIR) if "/qemu/snapshot/" in folder and names] == []


CASES = {
    case.__name__: case
    for case in (
        *(life, same_name, death, told_to_quit, bad_start, many, one_root, one_try, interrupted, fork),
        *(abandon, adopt),
        *(snapshots, snapshots_refused, revived, stopped, hung),
    )
}

if __name__ == "__main__":
    CASES[CASE]()
