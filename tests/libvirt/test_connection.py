"""What only libvirt can show, on its test driver."""

from __future__ import annotations

import re
from concurrent.futures import ThreadPoolExecutor

import libvirt
import pytest

from pytest_kvm.errors import ConnectionFailed, DomainFailed, HypervisorError, MissingDependency
from pytest_kvm.host import oldest_versions
from pytest_kvm.hypervisor import libvirt_hypervisor
from pytest_kvm.hypervisor.connect import open_hypervisor
from pytest_kvm.hypervisor.lifecycle import Lifecycle
from pytest_kvm.waiting import NotYet, wait_until

XML = """
<domain type='test'>
  <name>{name}</name><memory unit='MiB'>8</memory><os><type>{kind}</type></os>
</domain>
"""


@pytest.fixture
def hypervisor(tmp_path):
    opened = open_hypervisor("test:///default", run_dir=tmp_path / "run", cache_dir=tmp_path / "cache")
    yield opened
    opened.close()


def test_a_refusal_carries_libvirts_text_and_no_libvirt_error(hypervisor):
    with pytest.raises(DomainFailed, match="libvirt could not create the domain web") as caught:
        hypervisor.create(XML.format(name="web", kind="nonsense"))
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__


def test_a_refused_domain_leaves_its_name_free(hypervisor):
    with pytest.raises(DomainFailed):
        hypervisor.create(XML.format(name="web", kind="nonsense"))
    hypervisor.create(XML.format(name="web", kind="hvm")).destroy()


def test_a_name_is_not_free_before_libvirt_has_told_of_the_end(hypervisor, monkeypatch):
    """Its late event would end the next domain of that name."""
    domain = hypervisor.create(XML.format(name="web", kind="hvm"))
    with monkeypatch.context() as patch:
        patch.setattr(libvirt_hypervisor, "_FORGOTTEN_WITHIN", 0.01)
        life = hypervisor._lives["web"]
        patch.setattr(life, "event", lambda event, detail: None)
        domain.destroy()
        with pytest.raises(DomainFailed, match="web has ended, and libvirt did not remove it within"):
            hypervisor.create(XML.format(name="web", kind="hvm"))
    life._settled.set()
    hypervisor.create(XML.format(name="web", kind="hvm")).destroy()


def test_every_reset_is_told(hypervisor):
    """The test driver has no such event."""
    domain = hypervisor.create(XML.format(name="web", kind="hvm"))
    told = []
    domain.on_reset(lambda: told.append("reset"))
    raw = hypervisor._connection.get().lookupByName("web")
    hypervisor._on_reset(None, raw, None)
    hypervisor._on_reset(None, raw, None)
    assert told == ["reset", "reset"]
    domain.destroy()


def tell_of_a_full_disk(hypervisor):
    """Do what libvirt does: the test driver has no such event."""
    raw, paused = hypervisor._connection.get().lookupByName("web"), libvirt.VIR_DOMAIN_EVENT_IO_ERROR_PAUSE
    hypervisor._on_io_error(None, raw, "/root.qcow2", "virtio-disk0", paused, "enospc", None)


def test_a_full_disk_is_the_end_of_the_domain_that_has_the_name_now(hypervisor):
    """libvirt's event has only the name; a former domain may not be forgotten yet."""
    former = hypervisor.create(XML.format(name="web", kind="hvm"))
    new = hypervisor._lives["web"] = Lifecycle("web", autopsy=str)
    tell_of_a_full_disk(hypervisor)
    assert (former.alive(), new.alive, new.was_given_up) == (True, False, True)
    former.destroy()


def test_a_domain_with_a_full_disk_is_removed(hypervisor):
    domain = hypervisor.create(XML.format(name="web", kind="hvm"))
    tell_of_a_full_disk(hypervisor)
    assert "the host's disk is full" in domain.end_reason()
    with pytest.raises(DomainFailed, match="web has ended: QEMU has stopped it at its virtio-disk0"):
        domain.suspend()
    hypervisor.create(XML.format(name="web", kind="hvm")).destroy()


def test_what_the_driver_lacks_is_said(hypervisor):
    domain = hypervisor.create(XML.format(name="web", kind="hvm"))
    with pytest.raises(HypervisorError, match="not supported by the connection driver") as caught:
        domain.agent("guest-ping", timeout=1)
    assert "qemu:///embed" in caught.value.resolution
    domain.destroy()


def test_domains_of_others_are_listed(hypervisor):
    assert "test" in {domain.name for domain in hypervisor.domains()}
    assert {domain.pid for domain in hypervisor.domains()} == {None}


def test_a_domain_that_ends_while_it_is_listed_is_not_listed(hypervisor, monkeypatch):
    raw = hypervisor._connection.get()
    listed = raw.listAllDomains
    domain = hypervisor.create(XML.format(name="web", kind="hvm"))

    def forgotten():
        if "web" in hypervisor._lives:
            raise NotYet("it is there")

    def listed_before_its_end(flags):
        found = listed(flags)
        domain.destroy()
        wait_until(forgotten, every=0.01, timeout=10, describe="that the end has been told of")
        return found

    monkeypatch.setattr(raw, "listAllDomains", listed_before_its_end)
    assert [each.name for each in hypervisor.domains()] == ["test"]
    hypervisor.create(XML.format(name="web", kind="hvm")).destroy()


def test_a_domain_that_is_listed_while_it_is_created_keeps_its_events(hypervisor, monkeypatch):
    raw = hypervisor._connection.get()
    create = raw.createXML
    names = []

    def listed_at_once(xml, flags):
        domain = create(xml, flags)
        names.extend(each.name for each in hypervisor.domains())
        return domain

    monkeypatch.setattr(raw, "createXML", listed_at_once)
    domain = hypervisor.create(XML.format(name="web", kind="hvm"))
    assert names == ["test"]
    raw.lookupByName("web").destroy()
    assert domain.wait_end(10)


def test_many_threads_create_and_destroy_on_one_connection(hypervisor):
    def live(number):
        domain = hypervisor.create(XML.format(name=f"guest{number}", kind="hvm"))
        domain.destroy()
        return domain.end_reason()

    with ThreadPoolExecutor(8) as pool:
        assert set(pool.map(live, range(64))) == {"destroyed"}


def test_an_unknown_scheme_is_a_failed_connection(tmp_path):
    with pytest.raises(ConnectionFailed, match="bogus:///x"):
        open_hypervisor("bogus:///x", run_dir=tmp_path, cache_dir=tmp_path)


def test_libvirt_has_to_be_new_enough(hypervisor, monkeypatch):
    monkeypatch.setitem(oldest_versions.OLDEST, "libvirt", (99, 0, 0))
    with pytest.raises(MissingDependency) as caught:
        hypervisor.facts()
    assert re.match(
        r"libvirt \(test:///default\) is version \d+\.\d+\.\d+; 99\.0\.0 is the oldest that will do\n→ ",
        str(caught.value),
    )
