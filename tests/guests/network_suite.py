"""Run by test_libvirt_networks.py beside a system daemon: segments that are libvirt networks."""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import replace

import pytest

import pytest_kvm as kvm
from pytest_kvm.errors import NetworkFailed, SpecError


@kvm.network(scope="module")
def lan():
    return kvm.NetworkSpec(backend="libvirt", subnet="10.1.0.0/24", subnet6="fd00:1::/64", mtu=1400)


@kvm.network(scope="module")
def out():
    return kvm.NetworkSpec(forward="nat", subnet="10.2.0.0/24", subnet6="fd00:2::/64")


@kvm.network(scope="module")
def way():
    return kvm.NetworkSpec(forward="routed", subnet="10.3.0.0/24", subnet6=None)


@kvm.network(scope="module")
def own():
    return kvm.NetworkSpec()


@kvm.network(scope="module")
def wide():
    return kvm.NetworkSpec(bridge="br-test", subnet="10.4.0.0/24", subnet6=None)


@kvm.network(scope="module")
def red():
    return kvm.NetworkSpec(
        bridge="ovs-test", virtualport="openvswitch", vlan=5, subnet="10.5.0.0/24", subnet6=None
    )


@kvm.network(scope="module")
def blue():
    return kvm.NetworkSpec(
        bridge="ovs-test", virtualport="openvswitch", vlan=6, subnet="10.5.0.0/24", subnet6=None
    )


@kvm.network(scope="module")
def both():
    return kvm.NetworkSpec(bridge="ovs-test", virtualport="openvswitch", trunk=[5, 6])


def on(*segments):
    return kvm.GuestSpec(memory="512MiB", vcpus=1, nics=[kvm.Nic(each) for each in segments])


@kvm.guest(scope="module")
def alice(lan, out):
    return on(lan, out)


@kvm.guest(scope="module")
def bob(lan, way):
    return on(lan, way)


@kvm.guest
def carol(lan, own):
    return on(lan, own)


@kvm.guest
def dave(own, lan):
    return on(own, lan)


def reaches(guest, whom, *, version=4, within=20):
    """Say whether an answer comes within so many seconds; a card that has its carrier back takes some.

    One ping could end before that, because the guest's kernel still says that the other is
    unreachable.
    """
    asking = 'until ping "$@"; do :; done'
    ping = [f"-{version}", "-c", "1", "-i", "0.2", "-w", str(within), str(whom)]
    command = ["timeout", str(within), "sh", "-c", asking, "sh", *ping]
    return guest.run(command, check=False).exit_code == 0


def carrier(guest, segment):
    [card] = [nic for nic in guest.nics if nic.segment is segment]
    return guest.read_text(f"/sys/class/net/{card.device}/carrier").strip()


def test_isolated_guests_find_each_other_and_nobody_else(lan, alice, bob):
    assert [str(nic.address) for nic in lan.nics] == ["10.1.0.10", "10.1.0.11"]
    assert reaches(alice, "bob.lan")
    assert reaches(bob, "alice.lan", version=6)
    assert alice.read_text(f"/sys/class/net/{lan.nics[0].device}/mtu").strip() == "1400"
    addresses = subprocess.run(["ip", "-o", "address"], capture_output=True, text=True, check=True).stdout
    assert "10.1.0." not in addresses, "the host is not on it"
    assert "10.2.0.1/24" in addresses, "but on that which leads out"
    counted = lan.counters
    assert all(counted[name][way]["frames"] for name in ("alice", "bob") for way in ("in", "out"))


ECHO = """
import socket
with socket.create_server(("::", 7777), family=socket.AF_INET6, dualstack_ipv6=True) as server:
    print("listening", flush=True)
    connection, peer = server.accept()
    connection.sendall(peer[0].encode())
"""
CONNECT = """
import socket, sys
print(socket.create_connection((sys.argv[1], 7777), 30).recv(99).decode())
"""


def source_seen(guest, beyond):
    """Have a guest connect to an address beyond the host; return whom the other end sees."""
    server = subprocess.Popen(
        ["ip", "netns", "exec", "beyond", sys.executable, "-c", ECHO], stdout=subprocess.PIPE, text=True
    )
    with server:
        assert server.stdout.readline() == "listening\n"
        try:
            return guest.run(["python3", "-c", CONNECT, beyond]).stdout.strip().removeprefix("::ffff:")
        finally:
            server.kill()


def test_nat_shows_the_hosts_address_and_routing_the_guests_own(out, way, alice, bob):
    assert source_seen(alice, "192.0.2.2") == "192.0.2.1"
    assert source_seen(alice, "2001:db8::2") == "2001:db8::1"
    assert source_seen(bob, "192.0.2.2") == "10.3.0.10"
    assert (str(out.gateway), str(out.gateway6)) == ("10.2.0.1", "fd00:2::1")
    assert (str(way.gateway), way.gateway6) == ("10.3.0.1", None)
    with pytest.raises(SpecError, match="10.2.0.1 is the host's own address on out"):
        kvm.Nic(out, address="10.2.0.1")


def test_an_unplugged_guest_sees_its_carrier_go(lan, alice, bob):
    fault = lan.unplug(alice)
    assert carrier(alice, lan) == "0"
    assert not reaches(bob, alice.address(lan), within=2)
    fault.undo()
    assert carrier(alice, lan) == "1"
    assert reaches(bob, alice.address(lan))


def test_a_savepoint_leaves_a_fault_and_a_boot_leaves_the_network(lan, alice, bob):
    alice.write_text("/root/changed", "by this test")
    with alice.savepoint():
        fault = lan.unplug(alice)
    assert carrier(alice, lan) == "0", "what the test has set is still set"
    fault.undo()
    assert reaches(alice, "bob.lan")
    bob.power_off()
    bob.power_on()
    assert reaches(alice, "bob.lan")
    assert reaches(bob, "alice.lan", version=6)
    assert source_seen(bob, "192.0.2.2") == "10.3.0.10"


def test_after_the_reset_all_is_as_before(lan, alice, bob):
    assert alice.run(["test", "-e", "/root/changed"], check=False).exit_code == 1
    assert reaches(alice, "bob.lan")
    assert reaches(bob, "alice.lan", version=6)


SEND = """
import socket, sys
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
    for number in range(3000):
        sender.sendto(b"from the future", (sys.argv[1], 7000))
"""


def refused(guest):
    """Return how many packets have come for a port where nobody listens."""
    names, numbers = [
        line.split() for line in guest.run(["grep", "^Udp:", "/proc/net/snmp"]).stdout.splitlines()
    ]
    return int(dict(zip(names, numbers, strict=True))["NoPorts"])


def test_frames_that_wait_for_a_guest_are_dropped_when_it_is_restored(lan, alice, bob):
    check_nothing_comes_from_the_future(lan, alice, bob)


def check_nothing_comes_from_the_future(lan, alice, bob):
    his, hers = (next(nic for nic in guest.nics if nic.segment is lan) for guest in (bob, alice))
    neighbour = f"ip neigh replace {hers.address} lladdr {hers.mac} dev {his.device} nud permanent"
    bob.run(neighbour)  # so that the frames wait for her in the host, and not in bob for her address
    before, savepoint = refused(alice), alice.savepoint()
    alice.pause()
    bob.run(["python3", "-c", SEND, str(hers.address)])
    savepoint.restore()
    assert reaches(alice, "bob.lan")
    assert refused(alice) == before
    bob.run(["python3", "-c", SEND, str(hers.address)])
    assert reaches(alice, "bob.lan")
    assert refused(alice) > before, "which would have been seen"


def test_all_guests_of_a_lab_are_put_back_without_a_flap(lan, alice, bob):
    lab = kvm.lab(alice, bob)
    changes = ["cat", f"/sys/class/net/{lan.nics[0].device}/carrier_changes"]
    before, savepoint = alice.run(changes).stdout, lab.savepoint()
    assert alice.run(changes).stdout == before
    alice.run("touch /root/after")
    savepoint.restore()
    assert alice.run("ls /root").stdout == ""
    assert alice.run(changes).stdout == before
    assert reaches(alice, "bob.lan")


@kvm.guest
def frank(lan):
    return on(lan)


@pytest.mark.parametrize("number", range(4))
def test_a_spare_clone_is_not_on_the_network_before_it_is_a_guest(lan, alice, frank, number):
    """From the second start of a guest on, the next one waits with the same addresses."""
    [card] = frank.nics
    assert reaches(alice, "frank.lan")
    replies = alice.run(["ping", "-c", "20", "-i", "0.05", str(card.address)]).stdout
    assert "20 packets transmitted, 20 received" in replies
    assert "DUP" not in replies
    bridge = subprocess.run(["bridge", "fdb", "show"], capture_output=True, text=True, check=True).stdout
    taps = {line.split()[2] for line in bridge.splitlines() if line.startswith(card.mac)}
    assert len(taps) == 1, bridge


def test_a_guest_on_a_libvirt_network_and_on_a_segment_of_the_switch(lan, own, alice, carol, dave):
    assert reaches(carol, "alice.lan")
    assert reaches(dave, "alice.lan")
    assert reaches(carol, "dave.own")
    assert own.counters["carol"]["out"]["frames"]
    own.isolate(dave)
    assert not reaches(carol, dave.address(own), within=2)
    assert reaches(carol, dave.address(lan))


# ---------------------------------------------------------------- faults and captures


def round_trip(guest, whom):
    """Return the seconds of the fastest of some round trips."""
    said = guest.run(["ping", "-c", "4", "-i", "0.2", str(whom)]).stdout
    [fastest] = re.findall(r"min/avg/max/mdev = ([\d.]+)/", said)
    return float(fastest) / 1000


def test_a_bad_line_is_bad_towards_guests_and_the_host(out, alice, kvm_guests):
    erin = kvm_guests.boot(on(out))
    assert reaches(alice, erin.address(out))
    with out.delay(0.3):
        for whom in (erin.address(out), out.gateway):
            assert round_trip(alice, whom) >= 0.6
    with out.delay(0.3, link=alice, direction="in"):
        assert round_trip(alice, out.gateway) >= 0.3
        assert round_trip(erin, alice.address(out)) >= 0.3
    with out.loss(1.0, link=erin):
        assert not reaches(erin, out.gateway, within=2)
        assert reaches(alice, out.gateway)
    assert out.counters[out.nics[-1].link]["out"]["dropped"]["loss"]
    said = alice.run(["ping", "-c", "20", "-i", "0.05", str(erin.address(out))]).stdout
    assert "20 packets transmitted, 20 received" in said
    assert "DUP" not in said
    assert source_seen(alice, "192.0.2.2") == "192.0.2.1"


def test_no_frame_is_lost_while_the_switch_takes_over(lan, alice, bob):
    assert reaches(alice, "bob.lan")
    ping = alice.start(["ping", "-i", "0.01", "-c", "500", str(bob.address(lan))])
    answers = ping.lines()
    assert any("icmp_seq=50 " in line for line in answers)
    with lan.capture() as packets:
        packets.wait_for_packet("icmp")
    said = "".join(answers)
    assert "500 packets transmitted, 500 received" in said
    assert "DUP" not in said


RECEIVE = """
import hashlib, socket
with socket.create_server(("", 7778)) as server:
    print("listening", flush=True)
    connection, _ = server.accept()
    digest = hashlib.sha256()
    while data := connection.recv(65536):
        digest.update(data)
print(digest.hexdigest())
"""
SEND_ALL = """
import socket, sys
with socket.create_connection((sys.argv[1], 7778), 30) as connection:
    connection.sendall(bytes(range(256)) * 10_000)
"""


def digest_sent(sender, receiver, address):
    """Have a guest send some megabytes by TCP; return the digest of what has come."""
    received = receiver.start(["python3", "-c", RECEIVE]).lines()
    assert next(received) == "listening"
    sender.run(["python3", "-c", SEND_ALL, str(address)])
    return next(received)


def test_a_partition_holds_for_all_machines_of_a_guest(lan, alice, bob):
    assert reaches(alice, "bob.lan")
    with lan.partition(alice, bob):
        assert not reaches(alice, "bob.lan", within=2)
        bob.power_off()
        bob.power_on()
        alice.savepoint().restore()
        assert not reaches(alice, "bob.lan", within=2)
        assert not reaches(bob, "alice.lan", within=2)
    assert reaches(alice, "bob.lan")
    assert reaches(bob, "alice.lan", version=6)
    for one, other in (
        (alice, bob),
        (bob, alice),
    ):  # one was restored and the other has booted on its tap device
        assert digest_sent(one, other, other.address(lan)) == digest_sent(one, one, "127.0.0.1")
    lan.partition(alice, bob)
    assert not reaches(alice, "bob.lan", within=2)


def test_after_a_reset_the_partition_is_gone(lan, alice, bob):
    assert reaches(alice, "bob.lan")
    with lan.unplug(bob):
        assert not reaches(alice, "bob.lan", within=2)
    assert reaches(bob, "alice.lan")


def test_frames_that_wait_in_the_switch_are_dropped_when_a_guest_is_restored(lan, alice, bob):
    with lan.delay(0.2, link=alice, direction="in"):
        check_nothing_comes_from_the_future(lan, alice, bob)


def test_a_capture_shows_what_guests_and_the_host_send_each_other(wide, gina, hugo):
    with wide.capture() as packets, wide.drop("icmp and dst host 10.4.0.11"):
        assert reaches(gina, "10.4.0.250")
        assert not reaches(gina, "hugo.wide", within=2)
        packets.wait_for_packet("icmp and src host 10.4.0.250")
        packets.assert_no_packet("icmp and dst host 10.4.0.11")
    wide.heal()
    with wide.capture(link=hugo) as packets:
        assert reaches(gina, "hugo.wide")
        packets.wait_for_packet("icmp and src host 10.4.0.11")


def test_a_partition_on_open_vswitch(red, gina, hugo):
    assert reaches(gina, "hugo.red")
    with red.isolate(gina):
        assert not reaches(gina, "hugo.red", within=2)
    assert reaches(gina, "hugo.red")


# ---------------------------------------------------------------- bridges of the host


@kvm.guest(scope="module")
def gina(wide, red):
    return on(wide, red)


@kvm.guest(scope="module")
def hugo(wide, red):
    return on(wide, red)


@kvm.guest(scope="module")
def ida(wide, blue):
    return kvm.GuestSpec(memory="512MiB", vcpus=1, nics=[kvm.Nic(wide), kvm.Nic(blue, address="10.5.0.20")])


def test_guests_on_a_bridge_of_the_host_reach_what_is_on_it(wide, gina, hugo, kvm_networks):
    assert str(gina.address(wide)) == "10.4.0.10"
    assert reaches(gina, "hugo.wide")
    assert reaches(gina, "10.4.0.250")
    with wide.unplug(gina):
        assert not reaches(gina, "10.4.0.250", within=2)
    assert reaches(gina, "10.4.0.250")
    with pytest.raises(NetworkFailed, match="10.4.0.0/24 is already in use by another segment or run"):
        kvm_networks.make(wide.spec)


def test_guests_on_open_vswitch_reach_those_in_their_vlan(red, blue, gina, hugo, ida):
    assert reaches(gina, "hugo.red")
    assert reaches(gina, "ida.wide")
    assert not reaches(gina, ida.address(blue), within=2)
    with red.unplug(gina):
        assert not reaches(gina, "hugo.red", within=2)
    assert reaches(gina, "hugo.red")
    lab = kvm.lab(gina, hugo)
    lab.savepoint().restore()
    assert reaches(gina, "hugo.red")
    counted = red.counters["hugo"]
    assert counted["in"]["frames"]
    assert counted["out"]["frames"]


@kvm.guest
def jane(wide, both):
    return on(wide, both)


VLAN = """
ip link set {device} up
ip link add link {device} name tagged type vlan id {vlan}
ip address add 10.5.0.50/24 dev tagged
ip link set tagged up
"""


def test_a_trunk_leads_to_several_vlans(red, blue, gina, ida, jane):
    [_, card] = jane.nics
    for vlan, its, other in (
        (5, gina.address(red), ida.address(blue)),
        (6, ida.address(blue), gina.address(red)),
    ):
        jane.run(VLAN.format(device=card.device, vlan=vlan))
        assert reaches(jane, its)
        assert not reaches(jane, other, within=2)
        jane.run("ip link delete tagged")


def test_frames_without_a_tag_are_in_the_vlan_beside_the_trunk(
    red, blue, gina, ida, kvm_guests, kvm_networks
):
    beside = kvm_networks.make(replace(blue.spec, vlan=5, trunk=[6], subnet=None))
    guest = kvm_guests.boot(on(beside, beside))
    device = guest.nics[0].device
    guest.run(f"ip link set {device} up; ip address add 10.5.0.60/24 dev {device}")
    assert reaches(guest, gina.address(red))
    assert not reaches(guest, ida.address(blue), within=2)
    guest.run(f"ip address flush dev {device}")
    guest.run(VLAN.format(device=device, vlan=6))
    assert reaches(guest, ida.address(blue))


def test_what_the_host_does_not_have_is_no_fault_of_templates(wide, kvm_guests, kvm_networks):
    nowhere = kvm_networks.make(kvm.NetworkSpec(bridge="br-none"))
    with pytest.raises(NetworkFailed, match="br-none") as caught:
        kvm_guests.boot(on(wide, nowhere))
    assert "make the bridge first" in caught.value.resolution
    plain = kvm_networks.make(kvm.NetworkSpec(bridge="ovs-test"))
    with pytest.raises(NetworkFailed, match="ovs-test") as caught:
        kvm_guests.boot(on(wide, plain))
    assert 'say virtualport="openvswitch"' in caught.value.resolution
    assert reaches(kvm_guests.boot(on(wide, wide)), "10.4.0.250"), "a clone, see test_libvirt_networks.py"


CAN_LIMIT = """
set -e
tc qdisc add dev lo root handle 1: htb
tc class add dev lo parent 1: classid 1:1 htb rate 1mbit
tc qdisc add dev lo parent 1:1 sfq
tc filter add dev lo parent 1: handle 1 fw flowid 1
tc qdisc add dev lo ingress
tc filter add dev lo parent ffff: u32 match u32 0 0 police rate 1mbit burst 1k drop
"""
"""Fails if the host's kernel lacks something that a bandwidth needs."""


def test_a_bandwidth_is_limited_or_refused(wide, kvm_guests, kvm_networks):
    slow = kvm_networks.make(kvm.NetworkSpec(inbound="8Mbit", outbound="4Mbit"), name="slow")
    if subprocess.run(["unshare", "--net", "sh", "-c", CAN_LIMIT], check=False).returncode:
        with pytest.raises(NetworkFailed, match="tc ") as caught:
            kvm_guests.boot(on(wide, slow))
        assert "load the kernel modules" in caught.value.resolution
    else:
        kvm_guests.boot(on(wide, slow))
        taps = "for tap in /sys/class/net/kv*; do tc class show dev ${tap##*/}; done"
        shown = subprocess.run(["sh", "-c", taps], capture_output=True, text=True, check=True).stdout
        assert "rate 8Mbit" in shown  # test_bandwidth.py looks closer
