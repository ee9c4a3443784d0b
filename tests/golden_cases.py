"""Specs whose domain XML and seeds are kept as golden files."""

from __future__ import annotations

from pathlib import Path

import pytest_kvm as kvm
from pytest_kvm.render.cloud_config import Identity
from pytest_kvm.render.network_xml import NetworkPlan
from pytest_kvm.render.plan import DirectBoot, DiskPlan, DomainPlan, NicPlan, SegmentNicPlan
from pytest_kvm.spec.network import declare_network

IDENTITY = Identity(
    instance_id="11111111-2222-4333-8444-555555555555",
    hostname="web",
    authorized_key="ssh-ed25519 AAAAuser",
    host_private_key="-----BEGIN KEY-----\nsecret\n-----END KEY-----\n",
    host_public_key="ssh-ed25519 AAAAhost",
)
CONTROL_MAC = "52:54:00:00:00:0a"
LAN = declare_network("lan", kvm.NetworkSpec(mtu=9000))
OUT = declare_network(
    "out", kvm.NetworkSpec(forward="nat", subnet="10.1.0.0/24", subnet6="fd00:1::/64", mtu=9000)
)
NETWORKS = {
    "isolated": declare_network(
        "lan", kvm.NetworkSpec(backend="libvirt", subnet="10.1.0.0/24", subnet6=None)
    ),
    "nat": OUT,
    "routed": declare_network("way", kvm.NetworkSpec(forward="routed", subnet="10.3.0.0/24", subnet6=None)),
    "bridge": declare_network("wide", kvm.NetworkSpec(bridge="br0", subnet="10.4.0.0/24")),
    "open_vswitch": declare_network("red", kvm.NetworkSpec(bridge="ovs0", virtualport="openvswitch", vlan=5)),
    "trunk": declare_network(
        "all", kvm.NetworkSpec(bridge="ovs0", virtualport="openvswitch", vlan=5, trunk=[6, 7])
    ),
    "bandwidth": declare_network(
        "slow", kvm.NetworkSpec(subnet=None, subnet6=None, inbound="10Mbit", outbound=1_500_000)
    ),
}
NETWORK_PLAN = NetworkPlan(
    name="kvm-0123abcd-lan-1", uuid="11111111-2222-4333-8444-555555555555", bridge="kb0123abcd-1"
)


def _add_watchdog(domain):
    devices = domain.find("devices")
    devices.append(devices.makeelement("watchdog", {"model": "i6300esb", "action": "reset"}))
    return domain


CASES: dict[str, kvm.GuestSpec] = {
    "plain": kvm.GuestSpec("debian-13"),
    "uefi": kvm.GuestSpec("debian-13", firmware="uefi", boot="firmware"),
    "bios": kvm.GuestSpec("debian-13", boot="firmware"),
    "disks": kvm.GuestSpec(
        "debian-13",
        disks=[
            kvm.Disk(size="1GiB", serial="data"),
            kvm.Disk(size="1GiB", bus="scsi", format="raw"),
            kvm.Disk(size="1GiB", bus="sata"),
            kvm.Disk(size="1GiB", bus="usb", readonly=True),
        ],
    ),
    "nics": kvm.GuestSpec(
        "debian-13",
        nics=[kvm.Nic("default", model="e1000e"), kvm.Nic(bridge="br0", link="down"), kvm.Nic(dhcp=False)],
        internet=True,
    ),
    "segments": kvm.GuestSpec(
        "debian-13",
        nics=[
            kvm.Nic(LAN),
            kvm.Nic(),
            kvm.Nic(LAN, model="e1000e", dhcp=True),
            kvm.Nic("default", queues=2),
            kvm.Nic(LAN, dhcp=False),
        ],
    ),
    "libvirt_networks": kvm.GuestSpec(
        "debian-13", nics=[kvm.Nic(LAN), kvm.Nic(OUT), kvm.Nic(OUT, model="e1000e")]
    ),
    "small_virtio_console": kvm.GuestSpec(
        "debian-13",
        memory="512MiB",
        vcpus=1,
        cpu="Nehalem",
        console="virtio",
        cmdline_extra="loglevel=7 a=\"<&>'",
    ),
    "hook": kvm.GuestSpec("debian-13", xml=_add_watchdog),
    "cloud_init": kvm.GuestSpec(
        "debian-13",
        hostname="web.example.org",
        timezone="Europe/Berlin",
        login="alice",
        packages=["nginx"],
        cloud_init=kvm.CloudInit(
            users=[kvm.User("bob", sudo=False, groups=["adm"], authorized_keys=["ssh-ed25519 AAAAbob"])],
            files=[
                kvm.File("/etc/a: b", "text: 'with' \"quotes\"\n#and\ttabs\n", mode=0o600),
                kvm.File("/home/bob/x", b"\xff\x00", owner="bob:bob"),
            ],
            run_commands=["echo 'a' > /b", ["touch", "/with space; rm -rf /"]],
            user_data={"write_files": [{"path": "/raw"}], "ssh_pwauth": True, "swap": {"size": 0}},
            network_config={"ethernets": {"kvm-control": {"mtu": 1400}}},
            vendor_data={"bootcmd": ["true"]},
        ),
    ),
}


def plan_for(spec: kvm.GuestSpec) -> DomainPlan:
    """Return what a run would have chosen, always the same."""
    folder = Path("/run/kvm")
    extra = [
        DiskPlan(
            path=folder / f"disk{number}",
            format=disk.format,
            bus=disk.bus,
            serial=disk.serial,
            readonly=disk.readonly,
        )
        for number, disk in enumerate(spec.disks, start=1)
    ]
    direct = DirectBoot(
        kernel=Path("/images/vmlinuz"),
        initrd=Path("/images/initrd"),
        cmdline=f"root=LABEL=root console=ttyS0 {spec.cmdline_extra}".strip(),
    )
    return DomainPlan(
        name="0123abcd-web",
        uuid=IDENTITY.instance_id,
        session="0123abcd",
        owner_pid=4711,
        owner_started=1700000000.25,
        accel="tcg",
        disks=[
            DiskPlan(path=folder / "root.qcow2", format="qcow2"),
            *extra,
            DiskPlan(path=folder / "seed.iso", format="raw", readonly=True),
        ],
        control_mac=CONTROL_MAC,
        nics=[
            NicPlan(index=index, nic=nic, mac=f"52:54:00:00:01:0{index}")
            for index, nic in enumerate(spec.nics)
            if nic.segment is None
        ],
        segment_nics=[
            SegmentNicPlan(
                index=index,
                nic=nic,
                mac=f"52:54:00:00:01:0{index}",
                port=folder / f"nic{index + 1}.sock",
                mtu=nic.segment.spec.mtu,
                network="kvm-0123abcd-out-1" if nic.segment.spec.is_libvirt else None,
                tap=f"kv012345678{index}",
                gateways=[str(each) for each in nic.segment.gateways],
                addresses=[f"10.1.0.1{index}/24", f"fd00:1::{index}/64"] if nic.has_fixed_address else [],
            )
            for index, nic in enumerate(spec.nics)
            if nic.segment is not None
        ],
        console_log=folder / "console.log",
        console_socket=folder / "console.sock",
        direct_boot=None if spec.boot == "firmware" else direct,
        genid="66666666-7777-4888-8999-aaaaaaaaaaaa",
    )
