"""Bandwidths of libvirt networks, in a guest in which libvirt runs: not every host has a kernel that can."""

from __future__ import annotations

import pytest

import pytest_kvm as kvm
from pytest_kvm.render.network_xml import NetworkPlan, network_xml
from pytest_kvm.spec.network import declare_network

PLAN = NetworkPlan(name="slow", uuid="11111111-2222-4333-8444-555555555555", bridge="kb1")
DOMAIN = """
<domain type="qemu">
  <name>inner</name>
  <memory unit="MiB">64</memory>
  <os><type machine="q35">hvm</type></os>
  <devices>
    <interface type="network">
      <source network="slow"/>
      <target dev="tap"/>
      <model type="virtio"/>
    </interface>
  </devices>
</domain>
"""


@kvm.guest(scope="module")
def host():
    return kvm.GuestSpec(
        vcpus=1,
        packages=["libvirt-daemon-system", "libvirt-clients", "qemu-system-x86", "iptables", "iproute2"],
        boot_timeout=900,
    )


@pytest.mark.parametrize("fields", [{"backend": "libvirt"}, {"bridge": "wide"}], ids=repr)
def test_each_card_has_the_bandwidths_of_its_network(host, fields):
    spec = kvm.NetworkSpec(inbound="8Mbit", outbound="4Mbit", **({"subnet": None, "subnet6": None} | fields))
    host.write_text("/root/network.xml", network_xml(declare_network("slow", spec), PLAN))
    host.write_text("/root/domain.xml", DOMAIN)
    host.run("ip link add wide type bridge && ip link set wide up")
    host.run("systemctl start libvirtd && virsh net-create /root/network.xml", timeout=300)
    host.run("virsh create --paused /root/domain.xml", timeout=300)
    shown = host.run("tc class show dev tap; tc filter show dev tap parent ffff:").stdout
    assert "htb 1:1 root leaf 2: prio 0 rate 8Mbit ceil 8Mbit" in shown
    assert "rate 4Mbit burst 500Kb mtu 64Kb action drop" in shown
    modules = host.run("lsmod").stdout
    missing = [name for name in NEEDED if f"{name} " not in modules]
    assert missing == [], "see how-to/libvirt-networks.md"


NEEDED = ("sch_htb", "sch_sfq", "cls_fw", "sch_ingress", "cls_u32", "act_police")
