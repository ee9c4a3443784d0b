"""Savepoints by hand: one guest, put back again and again."""

from __future__ import annotations

import shutil
import socket
import time
import uuid
import xml.etree.ElementTree as ET
from dataclasses import replace

import pytest

import pytest_kvm as kvm
from pytest_kvm.errors import SavepointGone, SavepointRefused, SshUnavailable
from pytest_kvm.hypervisor.connect import open_hypervisor
from pytest_kvm.hypervisor.protocol import DomainState
from pytest_kvm.machine.agent import GuestAgent
from pytest_kvm.render.qemu_args import QEMU_NAMESPACE
from tests.guest_specs import FULL, SECOND_DISK


@kvm.guest(scope="module")
def traveller():
    return replace(FULL, reset="never")


def mark(guest, text):
    """Write a word into memory, the root disk and the second disk."""
    guest.write_text("/dev/shm/mark", text)
    guest.write_text("/root/mark", text)
    guest.run(f"sync; echo {text} | dd of={SECOND_DISK} bs=512 conv=sync oflag=direct status=none")


def marks(guest):
    second = guest.run(f"dd if={SECOND_DISK} bs=512 count=1 iflag=direct status=none | head -n1").stdout
    return {guest.read_text("/dev/shm/mark"), guest.read_text("/root/mark"), second.strip()}


def mark_and_fail(guest):
    mark(guest, "inner")
    guest.run(["false"])


def taken(guest):
    """Return the names of the snapshots in the guest's disks."""
    table = guest.machine.domain.hmp("info snapshots").splitlines()
    return [line.split()[1] for line in table if "MiB" in line]


def test_memory_and_all_disks_go_back_together_in_any_order(traveller):
    mark(traveller, "one")
    first = traveller.savepoint()
    mark(traveller, "two")
    second = traveller.savepoint("the second")
    mark(traveller, "three")
    first.restore()
    assert marks(traveller) == {"one"}
    second.restore()
    assert marks(traveller) == {"two"}
    mark(traveller, "four")
    second.restore()
    assert marks(traveller) == {"two"}
    second.drop()
    first.restore()
    assert marks(traveller) == {"one"}
    first.drop()
    assert taken(traveller) == []
    with pytest.raises(SavepointGone, match="the second was dropped"):
        second.restore()


def test_blocks_are_nested_and_leave_nothing(traveller):
    mark(traveller, "outside")
    with traveller.savepoint():
        mark(traveller, "outer")
        with pytest.raises(kvm.CommandFailed), traveller.savepoint():
            mark_and_fail(traveller)
        assert marks(traveller) == {"outer"}
    assert marks(traveller) == {"outside"}
    assert taken(traveller) == []


def test_a_guest_that_was_put_back_has_new_random_numbers_and_the_time(traveller):
    drawn = set()
    with traveller.savepoint() as point:
        for _ in range(4):
            drawn.add(traveller.run("head -c16 /dev/urandom | od -An -tx1").stdout)
            point.restore()
            earliest = time.time()
            told = float(traveller.run(["date", "+%s.%N"]).stdout)
            assert earliest - 0.2 < told < time.time() + 0.2
    assert len(drawn) == 4


def test_the_guest_goes_on_with_the_time_of_day_also_without_an_agent(traveller, monkeypatch):
    domain = traveller.machine.domain
    take_snapshot = domain.take_snapshot

    def slowly(name):
        domain.suspend()
        assert not domain.wait_end(5)
        domain.resume()
        take_snapshot(name)

    monkeypatch.setattr(domain, "take_snapshot", slowly)
    traveller.run(["systemctl", "stop", "qemu-guest-agent"])
    try:
        with traveller.savepoint():
            asked = time.time()
            told = float(traveller.run(["date", "+%s.%N"]).stdout)
            assert told > asked - 4
    finally:
        traveller.run(["systemctl", "start", "qemu-guest-agent"])


def test_what_is_at_work_is_named(traveller):
    with traveller.start(["sleep", "1000"]), traveller.forward(22) as forward:
        with pytest.raises(SavepointRefused) as refusal:
            traveller.savepoint()
        assert "sleep 1000" in refusal.value.brief
        assert f"127.0.0.1:{forward.port} to port 22" in refusal.value.brief
    traveller.savepoint().drop()


def test_what_came_later_ends(traveller):
    with traveller.savepoint() as point:
        process = traveller.start(["sleep", "1000"])
        forward = traveller.forward(22)
        point.restore()
        with pytest.raises(SshUnavailable):
            process.wait()
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection((forward.host, forward.port))
        assert not traveller.run(["pgrep", "sleep"], check=False).ok
        traveller.savepoint().drop()


def test_the_console_keeps_what_was_printed(traveller):
    with traveller.savepoint():
        traveller.run("echo printed and undone >/dev/console")
        traveller.wait_for_console("printed and undone", since=0)
    assert "printed and undone" in traveller.console.text()


def test_a_panic_is_undone(traveller):
    with traveller.savepoint():
        traveller.crash()
    assert traveller.run(["echo", "alive"]).stdout == "alive\n"


def test_the_guest_runs_or_is_paused_as_it_was_then(traveller):
    domain = traveller.machine.domain
    with traveller.savepoint() as running:
        traveller.pause()
        with traveller.savepoint() as paused:
            assert domain.state() is DomainState.PAUSED
            running.restore()
            assert domain.state() is DomainState.RUNNING
            mark(traveller, "undone")
            paused.restore()
            assert domain.state() is DomainState.PAUSED
            before = traveller.machine.renewal_due.is_set()
            traveller.resume()
            assert (before, traveller.machine.renewal_due.is_set()) == (True, False)
            assert marks(traveller) != {"undone"}
    assert domain.state() is DomainState.RUNNING


def test_a_device_that_was_plugged_in_is_named(traveller):
    domain = traveller.machine.domain
    bus = free_port(domain)
    with traveller.savepoint() as point:
        mark(traveller, "kept")
        domain.qmp("device_add", {"driver": "qemu-xhci", "id": "latecomer", "bus": bus})
        with pytest.raises(SavepointRefused, match="other devices") as refusal:
            point.restore()
        assert refusal.value.details == "plugged in since: latecomer (qemu-xhci)"
        assert marks(traveller) == {"kept"}
        domain.qmp("device_del", {"id": "latecomer"})
        traveller.wait_until("! grep -q 0x0c0330 /sys/bus/pci/devices/*/class")
    assert marks(traveller) != {"kept"}


def free_port(domain):
    """Return a PCIe port with nothing in it."""
    (bus,) = domain.qmp("query-pci")
    return next(
        device["qdev_id"]
        for device in bus["devices"]
        if "pci_bridge" in device and not device["pci_bridge"].get("devices")
    )


def test_a_snapshot_goes_on_in_a_domain_of_its_own(traveller, revive):
    mark(traveller, "left")
    traveller.pause()
    traveller.machine.domain.save_libvirt_snapshot("left")
    revived = revive("left")
    assert revived.state() is DomainState.PAUSED
    traveller.resume()
    mark(traveller, "moved on")
    traveller.machine.domain.drop_snapshot("left")
    revived.resume()
    agent = GuestAgent(revived, timeout=60)
    agent.wait(timeout=60)
    assert {agent.read_text("/dev/shm/mark"), agent.read_text("/root/mark")} == {"left"}
    revived.destroy()
    assert marks(traveller) == {"moved on"}


@pytest.fixture
def revive(traveller):
    """Start a second domain like the guest's, from copies of its disks."""
    machine = traveller.machine
    folder = machine.folder.with_name("revived")
    hypervisor = open_hypervisor("qemu:///embed", run_dir=folder.parent, cache_dir=folder)
    domains = []

    def revived(snapshot):
        shutil.copytree(machine.folder, folder, ignore=lambda _, names: {n for n in names if "sock" in n})
        xml = another_domain(machine.domain.xml(), before=machine.folder, now=folder)
        domains.append(hypervisor.create_from_snapshot(xml, snapshot=snapshot, paused=True))
        return domains[0]

    yield revived
    for domain in domains:
        domain.destroy()
    shutil.rmtree(folder)


def another_domain(xml, *, before, now):
    root = ET.fromstring(xml.replace(str(before), str(now)))
    root.attrib.pop("id")
    root.find("name").text = "revived"
    root.find("uuid").text = str(uuid.uuid4())
    # A clone waits for its state on a descriptor; this one brings it along.
    (arguments,) = root.findall(f"{{{QEMU_NAMESPACE}}}commandline")
    values = [argument.get("value") for argument in arguments]
    if "-incoming" in values:
        at = values.index("-incoming")
        del arguments[at : at + 2]
    for element in [*root.iterfind("seclabel"), *root.iterfind("resource")]:
        root.remove(element)
    return ET.tostring(root, encoding="unicode")


def test_a_savepoint_lasts_as_long_as_its_qemu(traveller):
    point = traveller.savepoint()
    traveller.power_off()
    with pytest.raises(SavepointGone, match="has ended"):
        point.restore()
    point.drop()
    with pytest.raises(kvm.GuestGone):
        traveller.savepoint()
