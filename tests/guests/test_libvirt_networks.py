"""Segments that are libvirt networks, made by a real libvirtd in namespaces of the test's own."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from pytest_kvm.host.run_folder import RUNS
from pytest_kvm.plugin.session import settings_stashed
from scripts.check import EVENTS
from scripts.folders import own_folder
from tests import timings
from tests.system_daemon import beside_a_daemon, has_kvm

SUITE = Path(__file__).with_name("network_suite.py")
WORLD = """
mkdir -p /run/netns
mount -t tmpfs tmpfs /run/netns
ip netns add beyond
ip link add outside type veth peer name inside netns beyond
ip address add 192.0.2.1/24 dev outside
ip address add 2001:db8::1/64 dev outside nodad
ip link set outside up
ip -n beyond link set lo up
ip -n beyond address add 192.0.2.2/24 dev inside
ip -n beyond address add 2001:db8::2/64 dev inside nodad
ip -n beyond link set inside up
ip -n beyond route add 10.3.0.0/24 via 192.0.2.1
ip link add br-test type bridge
ip address add 10.4.0.250/24 dev br-test
ip link set br-test up
mkdir -p /run/openvswitch
mount -t tmpfs tmpfs /run/openvswitch
ovsdb-tool create /run/openvswitch/conf.db /usr/share/openvswitch/vswitch.ovsschema
ovsdb-server /run/openvswitch/conf.db --remote=punix:/run/openvswitch/db.sock 2>/run/openvswitch/db.out &
until test -S /run/openvswitch/db.sock; do sleep 0.1; done
ovs-vsctl --no-wait init
ovs-vswitchd unix:/run/openvswitch/db.sock 2>/run/openvswitch/switch.out &
ovs-vsctl --timeout=60 add-br ovs-test -- set bridge ovs-test datapath_type=netdev
"""
"""A host with a machine beyond it, which knows the way back to one routed network only; with a
bridge of its own, and one of Open vSwitch in user space, as not every kernel has its module."""
AFTERWARDS = """
"$@"; code=$?
for _ in $(seq 300); do test "$(ls {runs})" != guard || break; sleep 0.1; done
echo "AFTERWARDS $code"
ls {runs}
ip -brief link
iptables-save | grep kb
ip6tables-save | grep kb
ovs-vsctl list-ports ovs-test
"$1" -c 'import libvirt; print(*libvirt.open("qemu:///system").listAllNetworks())'
exit 0
"""
"""Runs a command, waits until the run's folder is gone, and shows what is left."""


@pytest.fixture
def work():
    with own_folder("kvm-") as folder:
        (folder / "suite").mkdir()
        (folder / "suite" / "pytest.ini").write_text("[pytest]\n")
        yield folder


@pytest.fixture
def run(pytestconfig, work):
    """Run the suite beside a system daemon; return its exit code, what it printed, and what it has left."""

    def run(*options):
        arguments = [
            *(sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-v", str(work / "suite"), *options),
            *("--kvm-uri=qemu:///system", f"--kvm-run-dir={work / 'r'}"),
            f"--kvm-cache-dir={settings_stashed(pytestconfig).cache_dir}",
        ]
        events = work / "events.jsonl"  # the run's own file is not to be reached from in there
        shell = ["bash", "-c", AFTERWARDS.format(runs=work / "r" / RUNS), "bash", *arguments]
        finished = subprocess.run(
            beside_a_daemon(shell, kvm=has_kvm(pytestconfig), prepare=WORLD),
            env={**os.environ, EVENTS: str(events)},
            capture_output=True,
            text=True,
            timeout=1500,
            check=False,
        )
        said, found, left = finished.stdout.partition("AFTERWARDS ")
        assert found, finished.stdout + finished.stderr
        timings.add(events)
        code, *lines = left.splitlines()
        return int(code), said, [line.split()[0] for line in lines if line]

    return run


NOTHING = ["guard", "lo", "outside@if2", "br-test", "ovs-netdev", "ovs-test"]


def test_they_do_what_segments_of_the_switch_do(work, run):
    shutil.copy(SUITE, work / "suite" / "test_networks.py")
    code, said, left = run()
    assert code == 0, said
    assert re.search(r"\b25 passed\b", said), said
    assert "(cow: " not in said, "a guest was booted because a clone of another could not be started"
    assert left == NOTHING


KILLED = """
import os
import signal
import subprocess

import pytest_kvm as kvm


@kvm.network
def lan():
    return kvm.NetworkSpec(backend="libvirt")


@kvm.network
def out():
    return kvm.NetworkSpec(forward="nat")


@kvm.network
def red():
    return kvm.NetworkSpec(bridge="ovs-test", virtualport="openvswitch", vlan=5)


def on(*segments):
    return kvm.GuestSpec(memory="512MiB", vcpus=1, nics=[kvm.Nic(each) for each in segments])


@kvm.guest
def alice(lan, out):
    return on(lan, out)


@kvm.guest
def bob(lan, red):
    return on(lan, red)


def test(lan, out, alice, bob):
    alice.run(["ping", "-c", "1", "-W", "20", str(out.gateway)])
    alice.run(["ping", "-c", "1", "-W", "20", str(out.gateway6)])
    subprocess.run("ip -brief link; iptables-save; ovs-vsctl list-ports ovs-test", shell=True, check=True)
    lan.isolate(bob)  # whose frames pass the switch from now on
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_kill_9_leaves_no_network_no_bridge_no_tap_no_port_and_no_rule(work, run):
    (work / "suite" / "test_killed.py").write_text(KILLED)
    code, said, left = run("-s")
    assert code == 137, said
    there = re.findall(r"^(kb|kv)[0-9a-f]", said, re.MULTILINE)
    assert sorted(there) == ["kb", "kb", *["kv"] * 5], "two bridges, four taps, one of them listed twice"
    assert "MASQUERADE" in said
    assert left == NOTHING
