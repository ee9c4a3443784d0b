"""Subnets and the addresses that guests may have in them."""

from __future__ import annotations

from ipaddress import ip_network
from itertools import islice

import pytest

import pytest_kvm as kvm
from pytest_kvm.errors import SpecError
from pytest_kvm.spec.network import check_connection, declare_network
from pytest_kvm.spec.subnets import count_hosts, hosts_in_order, is_host


@pytest.mark.parametrize(
    ("subnet", "first", "count"),
    [
        ("10.1.0.0/24", ["10.1.0.10", "10.1.0.11"], 254),
        ("10.1.0.0/30", ["10.1.0.1", "10.1.0.2"], 2),
        ("10.1.0.0/31", ["10.1.0.0", "10.1.0.1"], 2),
        ("fd00:1::/64", ["fd00:1::a", "fd00:1::b"], 2**64 - 1),
        ("fd00:1::/126", ["fd00:1::1", "fd00:1::2", "fd00:1::3"], 3),
        ("fd00:1::/127", ["fd00:1::", "fd00:1::1"], 2),
    ],
)
def test_addresses_of_a_subnet(subnet, first, count):
    hosts = hosts_in_order(ip_network(subnet))
    assert [str(each) for each in islice(hosts, len(first))] == first
    assert count_hosts(ip_network(subnet)) == count


@pytest.mark.parametrize("subnet", ["10.1.0.0/28", "10.1.0.0/31", "10.1.0.0/24", "fd00::/122", "fd00::/127"])
def test_each_address_of_a_small_subnet_is_given_once(subnet):
    network = ip_network(subnet)
    hosts = list(hosts_in_order(network))
    assert len(hosts) == len(set(hosts)) == count_hosts(network)
    assert all(is_host(each, network) for each in hosts)


def test_a_declared_network_knows_the_subnets_that_its_spec_gives():
    network = declare_network("lan", kvm.NetworkSpec(subnet="10.1.0.0/24"))
    assert str(network.subnet) == "10.1.0.0/24"
    with pytest.raises(LookupError, match="the IPv6 subnet of lan is chosen when the segment is made"):
        _ = network.subnet6
    assert repr(network) == "<Network lan>"


def test_an_address_is_kept_in_its_usual_form():
    network = declare_network("lan", kvm.NetworkSpec())
    assert kvm.Nic(network, address6="FD00:0:0::5").address6 == "fd00::5"


@pytest.mark.parametrize(
    ("fields", "gateway", "gateway6"),
    [
        ({"forward": "nat"}, "10.1.0.1", "fd00:1::1"),
        ({"forward": "routed", "subnet": "10.1.0.0/30"}, "10.1.0.1", "fd00:1::1"),
        ({"forward": "nat", "subnet6": None}, "10.1.0.1", None),
        ({"forward": "nat", "subnet": None}, None, "fd00:1::1"),
        ({"backend": "libvirt"}, None, None),
    ],
)
def test_the_host_has_the_first_address_of_what_leads_to_it(fields, gateway, gateway6):
    subnets = {"subnet": "10.1.0.0/24", "subnet6": "fd00:1::/64"}
    network = declare_network("out", kvm.NetworkSpec(**subnets | fields))
    found = [None if each is None else str(each) for each in (network.gateway, network.gateway6)]
    assert found == [gateway, gateway6]
    assert [str(each) for each in network.gateways] == [each for each in found if each]


def test_gateways_are_chosen_with_the_subnets():
    network = declare_network("out", kvm.NetworkSpec(forward="nat", subnet6=None))
    assert network.gateways == ()
    with pytest.raises(LookupError, match="the IPv4 subnet of out is chosen when the segment is made"):
        _ = network.gateway


def test_cards_on_a_trunk_alone_have_no_addresses():
    alone = kvm.NetworkSpec(bridge="br0", trunk=[5, 6])
    assert (alone.subnet, alone.subnet6) == (None, None)
    beside = kvm.NetworkSpec(bridge="br0", vlan=4, trunk=[5, 6], subnet6=None)
    assert (beside.subnet, beside.subnet6) == ("auto", None)
    assert kvm.NetworkSpec(backend="switch", trunk=[]) == kvm.NetworkSpec(backend="switch")


def test_only_what_can_differ_from_run_to_run_is_of_its_run():
    fixed, auto = {"subnet6": "fd00:1::/64"}, {"subnet6": "auto"}
    for fields, differs in (
        ({"bridge": "br0", **fixed}, True),
        ({"forward": "nat", **auto}, True),
        ({"forward": "nat", **fixed}, False),
        ({"backend": "libvirt", **auto}, False),
    ):
        assert kvm.NetworkSpec(**fields).has_addresses_of_its_run is differs


@pytest.mark.parametrize(
    ("model", "fields", "prevents"),
    [
        ("e1000e", {"bridge": "br0"}, True),
        ("virtio", {"bridge": "br0"}, False),
        ("e1000e", {"forward": "nat"}, False),
    ],
)
def test_a_model_tied_to_its_mac_prevents_clones_where_each_run_has_its_own(model, fields, prevents):
    network = declare_network("wide", kvm.NetworkSpec(**fields))
    assert kvm.Nic(network, model=model).prevents_clones is prevents
    assert not kvm.Nic(network, model=model, mac="52:54:00:00:00:05").prevents_clones


@pytest.mark.parametrize(
    ("spec", "field"),
    [
        (kvm.NetworkSpec(backend="libvirt"), "NetworkSpec.backend of out is 'libvirt'"),
        (kvm.NetworkSpec(backend="libvirt", forward="nat"), "NetworkSpec.forward of out is 'nat'"),
        (kvm.NetworkSpec(bridge="br0", vlan=5), "NetworkSpec.bridge of out is 'br0'"),
        (kvm.NetworkSpec(outbound=1e6), "NetworkSpec.outbound of out is 1000000.0"),
    ],
)
def test_only_the_system_daemon_makes_networks(spec, field):
    check_connection("out", spec, uri="qemu:///system", is_system=True)
    check_connection("out", kvm.NetworkSpec(), uri="qemu:///embed", is_system=False)
    with pytest.raises(
        SpecError, match=f"{field}: only libvirt's system daemon .* connection is qemu:///embed"
    ):
        check_connection("out", spec, uri="qemu:///embed", is_system=False)
