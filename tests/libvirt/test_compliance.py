"""The fake hypervisor and libvirt do the same: these cases run on both."""

from __future__ import annotations

import pytest

from pytest_kvm.errors import DomainFailed, HypervisorError
from pytest_kvm.hypervisor.connect import open_hypervisor
from pytest_kvm.hypervisor.protocol import DomainState
from tests.fakes_hypervisor import FakeHypervisor

XML = """
<domain type='test'>
  <name>{name}</name><memory unit='MiB'>8</memory><os><type>hvm</type></os>
</domain>
"""


@pytest.fixture(params=["fake", "libvirt"])
def hypervisor(request, tmp_path):
    if request.param == "fake":
        opened = FakeHypervisor()
    else:
        opened = open_hypervisor("test:///default", run_dir=tmp_path / "run", cache_dir=tmp_path / "cache")
    yield opened
    opened.close()


@pytest.fixture
def domain(hypervisor):
    created = hypervisor.create(XML.format(name="web"))
    yield created
    created.destroy()


def test_a_created_domain_runs(hypervisor, domain):
    assert (domain.name, domain.state(), domain.alive(), domain.end_reason()) == (
        "web",
        DomainState.RUNNING,
        True,
        "",
    )
    assert "<name>web</name>" in domain.xml()
    assert domain.uuid in {other.uuid for other in hypervisor.domains()}


def test_suspend_and_resume(domain):
    domain.suspend()
    assert domain.state() is DomainState.PAUSED
    domain.resume()
    assert domain.state() is DomainState.RUNNING


def test_destroy_ends_it_once_and_says_so(hypervisor, domain):
    reasons = []
    domain.on_end(reasons.append)
    domain.destroy()
    domain.destroy()
    assert domain.wait_end(5)
    domain.on_end(reasons.append)
    assert reasons == ["destroyed", "destroyed"]
    assert (domain.alive(), domain.end_reason(), domain.state()) == (False, "destroyed", DomainState.SHUTOFF)
    assert domain.uuid not in {other.uuid for other in hypervisor.domains()}


def test_a_guest_that_shuts_down_ends_by_itself(domain):
    domain.shutdown()
    assert domain.wait_end(5)
    assert domain.end_reason() == "guest shutdown"


def test_waiting_for_the_end_of_a_running_domain_times_out(domain):
    assert not domain.wait_end(0.01)


def test_a_domain_that_ended_refuses_and_says_why(domain):
    domain.destroy()
    for call in (domain.resume, domain.suspend, domain.reset, domain.shutdown, domain.screenshot):
        with pytest.raises(DomainFailed, match="web has ended: destroyed"):
            call()


def test_a_domain_that_ended_shows_what_it_was_started_from(domain):
    assert "<name>web</name>" in domain.xml()
    domain.destroy()
    assert domain.xml() == XML.format(name="web")


def test_a_screenshot_is_a_png(domain):
    assert domain.screenshot().startswith(b"\x89PNG")


def test_keys_nmi_and_reset_are_taken(domain):
    domain.send_keys([29, 56, 111], hold_ms=10)
    domain.inject_nmi()
    domain.reset()
    assert domain.alive()


def test_two_domains_of_one_name_are_refused(hypervisor, domain):
    with pytest.raises(DomainFailed, match="web runs already"):
        hypervisor.create(XML.format(name="web"))
    assert domain.alive()


def test_a_name_is_free_again_after_the_end(hypervisor, domain):
    for _ in range(20):
        domain.destroy()
        again = hypervisor.create(XML.format(name="web"))
        assert again.alive()
        again.destroy()
        assert not again.alive()


@pytest.mark.parametrize("xml", ["<domain", "<domain type='test'/>"])
def test_xml_that_is_none_is_refused(hypervisor, xml):
    with pytest.raises(DomainFailed, match="the domain's XML"):
        hypervisor.create(xml)


def test_what_there_is_no_monitor_for_is_a_hypervisor_error(domain):
    with pytest.raises(HypervisorError, match="query-status"):
        domain.qmp("query-status")
    with pytest.raises(HypervisorError, match="info status"):
        domain.hmp("info status")


def test_facts_name_the_connection(hypervisor):
    assert hypervisor.facts().uri.endswith(":///default")


def test_closing_twice_is_fine(hypervisor):
    hypervisor.close()
