"""Every mistake in a spec is told by field, with what to do about it."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

import pytest_kvm as kvm
from pytest_kvm.sizes import parse_bits_per_second, parse_kib
from pytest_kvm.spec.network import declare_network
from pytest_kvm.spec.value import misfit

LAN = declare_network("lan", kvm.NetworkSpec(subnet="10.1.0.0/24", subnet6=None))
WIDE = declare_network("wide", kvm.NetworkSpec(subnet="10.1.0.0/16"))
NEAR = declare_network("near", kvm.NetworkSpec(subnet="10.0.3.0/24"))
OUT = declare_network("out", kvm.NetworkSpec(forward="nat", subnet="10.2.0.0/24"))
JUMBO = declare_network("jumbo", kvm.NetworkSpec(mtu=9000))

MISTAKES = {
    "unknown field": (
        lambda: kvm.GuestSpec(memry="1GiB"),
        "GuestSpec has no field 'memry'",
        "did you mean 'memory'",
    ),
    "decimal unit": (lambda: kvm.GuestSpec(memory="1GB"), "GuestSpec.memory: '1GB' is not a size", "1GiB"),
    "no unit": (lambda: kvm.GuestSpec(memory="512"), "GuestSpec.memory: '512' is not a size", "MiB"),
    "a number": (lambda: kvm.GuestSpec(memory=512), "GuestSpec.memory: 512 is not a size", "MiB"),
    "no memory": (lambda: kvm.GuestSpec(memory="0MiB"), "GuestSpec.memory: '0MiB' is not a positive", ""),
    "too little memory": (
        lambda: kvm.GuestSpec(memory="4MiB"),
        "GuestSpec.memory: '4MiB' is too little",
        "64MiB",
    ),
    "vcpus": (lambda: kvm.GuestSpec(vcpus=0), "GuestSpec.vcpus: 0 is not a number from 1", ""),
    "vcpus bool": (lambda: kvm.GuestSpec(vcpus=True), "GuestSpec.vcpus: True is not", ""),
    "positional": (
        lambda: kvm.GuestSpec("a", "1GiB"),
        "GuestSpec takes 1 positional argument(s), 2 given",
        "memory",
    ),
    "image name": (lambda: kvm.GuestSpec("../etc"), "ImageRef.name: '../etc' is not an image name", "list"),
    "image digest": (lambda: kvm.ImageRef("a", digest="xyz"), "ImageRef.digest: 'xyz'", ""),
    "image type": (lambda: kvm.GuestSpec(7), "GuestSpec.image: 7 is neither a name nor", ""),
    "lone package": (
        lambda: kvm.GuestSpec(packages="vim"),
        "GuestSpec.packages: 'vim' is one item",
        "['vim']",
    ),
    "package option": (
        lambda: kvm.GuestSpec(packages=["-o"]),
        "GuestSpec.packages: '-o' is not a package",
        "",
    ),
    "unit": (lambda: kvm.GuestSpec(units=["nginx"]), "GuestSpec.units: 'nginx' is not a unit", ""),
    "hostname": (lambda: kvm.GuestSpec(hostname="a_b"), "GuestSpec.hostname: 'a_b' is not a host name", ""),
    "timezone": (lambda: kvm.GuestSpec(timezone="../x"), "GuestSpec.timezone: '../x' is not a time zone", ""),
    "login": (lambda: kvm.GuestSpec(login="a b"), "GuestSpec.login: 'a b' is not a user name", ""),
    "firmware": (lambda: kvm.GuestSpec(firmware="efi"), "GuestSpec.firmware: 'efi' is not one of", "uefi"),
    "boot": (lambda: kvm.GuestSpec(boot="disk"), "GuestSpec.boot: 'disk' is not one of", ""),
    "lone initrd": (
        lambda: kvm.GuestSpec(initrd="/i"),
        "GuestSpec.initrd: an initrd without a kernel",
        "kernel",
    ),
    "cmdline lost": (
        lambda: kvm.GuestSpec(boot="firmware", cmdline_extra="quiet"),
        'GuestSpec.cmdline_extra: means nothing with boot="firmware"',
        "boot directly",
    ),
    "direct uefi": (
        lambda: kvm.GuestSpec(firmware="uefi", boot="direct"),
        'GuestSpec.boot: "direct" with firmware="uefi"',
        "disk holds",
    ),
    "uefi cmdline": (
        lambda: kvm.GuestSpec(firmware="uefi", cmdline="quiet"),
        'GuestSpec.cmdline: means nothing with firmware="uefi"',
        "leave it out",
    ),
    "two lines": (lambda: kvm.GuestSpec(cmdline="a\nb"), "GuestSpec.cmdline: 'a\\nb' is not one line", ""),
    "timeout": (lambda: kvm.GuestSpec(boot_timeout=-1), "GuestSpec.boot_timeout: -1 is not", ""),
    "cpu": (lambda: kvm.GuestSpec(cpu="a,b"), "GuestSpec.cpu: 'a,b' is not a CPU model's name", ""),
    "no disk": (kvm.Disk, "Disk: neither size nor file", 'size="1GiB"'),
    "bus": (lambda: kvm.Disk(size="1GiB", bus="ide"), "Disk.bus: 'ide' is not one of", "virtio"),
    "serial": (lambda: kvm.Disk(size="1GiB", serial="x" * 21), "Disk.serial:", "1 to 20"),
    "one serial twice": (
        lambda: kvm.GuestSpec(disks=[kvm.Disk(size="1GiB", serial="a")] * 2),
        "GuestSpec.disks: two have the serial 'a'",
        "its own serial",
    ),
    "not a disk": (lambda: kvm.GuestSpec(disks=["1GiB"]), "GuestSpec.disks[0]: '1GiB' is not a Disk", ""),
    "two plugs": (lambda: kvm.Nic("a", bridge="b"), "Nic: network and bridge are both given", "choose one"),
    "mac": (lambda: kvm.Nic(mac="52:54:00"), "Nic.mac: '52:54:00' is not a MAC address", "six octets"),
    "multicast mac": (lambda: kvm.Nic(mac="01:00:00:00:00:01"), "is a multicast address", "even"),
    "one mac twice": (
        lambda: kvm.GuestSpec(nics=[kvm.Nic(mac="52:54:00:00:00:01")] * 2),
        "GuestSpec.nics: two have the MAC address",
        "",
    ),
    "queues of rtl8139": (
        lambda: kvm.Nic("a", queues=2, model="rtl8139"),
        "Nic.queues: rtl8139 has one queue",
        'model="virtio"',
    ),
    "queues on a segment": (lambda: kvm.Nic(LAN, queues=2), "Nic.queues: QEMU connects a card", "libvirt"),
    "no queue": (lambda: kvm.Nic("a", queues=0), "Nic.queues: 0 is not a number from 1 to 256", ""),
    "address on no segment": (
        lambda: kvm.Nic(address="10.1.0.5"),
        "Nic.address: the card is on no segment",
        "Nic(lan, …)",
    ),
    "address with dhcp": (
        lambda: kvm.Nic(LAN, address="10.1.0.5", dhcp=True),
        "Nic.address: given together with dhcp",
        "choose one",
    ),
    "no address": (
        lambda: kvm.Nic(LAN, address="10.1.0"),
        "Nic.address: '10.1.0' is not an IP address",
        'write "10.1.0.5"',
    ),
    "address of the wrong version": (
        lambda: kvm.Nic(LAN, address="fd00::1"),
        "Nic.address: fd00::1 is an IPv6 address",
        "it goes into Nic.address6",
    ),
    "address6 of the wrong version": (
        lambda: kvm.Nic(LAN, address6="10.1.0.5"),
        "Nic.address6: 10.1.0.5 is an IPv4 address",
        "it goes into Nic.address",
    ),
    "address elsewhere": (
        lambda: kvm.Nic(LAN, address="10.2.0.5"),
        "Nic.address: 10.2.0.5 is not in 10.1.0.0/24, the subnet of lan",
        "",
    ),
    "broadcast address": (
        lambda: kvm.Nic(LAN, address="10.1.0.255"),
        "Nic.address: 10.1.0.255 is the address of 10.1.0.0/24 itself or its broadcast address",
        "",
    ),
    "address where there are none": (
        lambda: kvm.Nic(LAN, address6="fd00::5"),
        "Nic.address6: lan has no IPv6 subnet",
        "give lan one",
    ),
    "card that is too small": (
        lambda: kvm.Nic(JUMBO, model="rtl8139"),
        "Nic.model: rtl8139 carries packets of 1500 bytes, and jumbo has an MTU of 9000",
        'use model="virtio"',
    ),
    "subnet": (
        lambda: kvm.NetworkSpec(subnet="192.168.1.1/24"),
        "NetworkSpec.subnet: '192.168.1.1/24' is not a subnet: 192.168.1.1/24 has host bits set",
        'write "192.168.1.0/24"',
    ),
    "subnet that is none": (
        lambda: kvm.NetworkSpec(subnet="10.1.0/24"),
        "NetworkSpec.subnet: '10.1.0/24' is not a subnet: ",
        'write "10.1.0.0/24"',
    ),
    "IPv6 address with its prefix as the IPv4 subnet": (
        lambda: kvm.NetworkSpec(subnet="fd00::1/64"),
        "NetworkSpec.subnet: 'fd00::1/64' is not a subnet: fd00::1/64 has host bits set",
        'write "10.1.0.0/24"',
    ),
    "subnet of the wrong version": (
        lambda: kvm.NetworkSpec(subnet6="10.1.0.0/24"),
        "NetworkSpec.subnet6: 10.1.0.0/24 is an IPv4 subnet",
        "it goes into NetworkSpec.subnet",
    ),
    "subnet of one": (
        lambda: kvm.NetworkSpec(subnet="10.1.0.1/32"),
        "NetworkSpec.subnet: 10.1.0.1/32 has one address",
        "",
    ),
    "the control network": (
        lambda: kvm.NetworkSpec(subnet="10.0.0.0/8"),
        "NetworkSpec.subnet: 10.0.0.0/8 overlaps 10.0.2.0/24, the network of each guest's control card",
        "choose another",
    ),
    "loopback": (
        lambda: kvm.NetworkSpec(subnet6="::/64"),
        "NetworkSpec.subnet6: ::/64 overlaps ::1/128, the address of the loopback device",
        "",
    ),
    "a number for a subnet": (
        lambda: kvm.NetworkSpec(subnet=5),
        "NetworkSpec.subnet: 5 is not a string or None",
        "",
    ),
    "an address with a scope": (
        lambda: kvm.Nic(JUMBO, address6="fd00::5%eth0"),
        "Nic.address6: 'fd00::5%eth0' is not an IP address",
        "",
    ),
    "a fixture in place of what it returns": (
        lambda: kvm.Nic(kvm.network(kvm.NetworkSpec)),
        "Nic.network: <pytest_fixture",
        "ask for the network's fixture: def web(lan)",
    ),
    "overlapping segments": (
        lambda: kvm.GuestSpec(nics=[kvm.Nic(LAN), kvm.Nic(WIDE)]),
        "GuestSpec.nics: wide is 10.1.0.0/16, which overlaps lan, which is 10.1.0.0/24",
        "choose another subnet",
    ),
    "a segment and a network of a card's own": (
        lambda: kvm.GuestSpec(nics=[kvm.Nic(), kvm.Nic(NEAR)]),
        "GuestSpec.nics: near is 10.0.3.0/24, which overlaps the network of the card Nic() number 1",
        "choose another subnet",
    ),
    "network config of a card on a segment": (
        lambda: kvm.GuestSpec(
            nics=[kvm.Nic(), kvm.Nic(LAN)],
            cloud_init=kvm.CloudInit(network_config={"vlans": {"v": {"id": 5, "link": "kvm-nic2"}}}),
        ),
        "CloudInit.network_config: kvm-nic2 is on a segment",
        "configure the card in a fixture",
    ),
    "mtu": (lambda: kvm.NetworkSpec(mtu=70000), "NetworkSpec.mtu: 70000 is no number", "at most 65521"),
    "network's back end": (
        lambda: kvm.NetworkSpec(backend="libvrt"),
        "NetworkSpec.backend: 'libvrt' is not one of 'auto', 'switch', 'libvirt'",
        "",
    ),
    "forward": (lambda: kvm.NetworkSpec(forward="bridged"), "NetworkSpec.forward: 'bridged'", ""),
    "forward of the switch": (
        lambda: kvm.NetworkSpec(backend="switch", forward="nat"),
        "NetworkSpec.forward: 'nat', and the run's switch has no such thing",
        'leave backend out, or set it to "libvirt"',
    ),
    "bandwidth of the switch": (
        lambda: kvm.NetworkSpec(backend="switch", outbound="1Mbit"),
        "NetworkSpec.outbound: '1Mbit', and the run's switch has no such thing",
        'leave backend out, or set it to "libvirt"',
    ),
    "bandwidth": (
        lambda: kvm.NetworkSpec(inbound="fast"),
        "NetworkSpec.inbound: 'fast' is not a bandwidth",
        "10Mbit",
    ),
    "bandwidth too small": (
        lambda: kvm.NetworkSpec(outbound="3999bit"),
        "NetworkSpec.outbound: '3999bit' is no bandwidth that libvirt can set",
        'from "8kbit" to "32Gbit"',
    ),
    "bandwidth too large": (
        lambda: kvm.NetworkSpec(inbound="33Gbit"),
        "NetworkSpec.inbound: '33Gbit' is no bandwidth that libvirt can set",
        'from "8kbit" to "32Gbit"',
    ),
    "a folder in place of a bridge": (
        lambda: kvm.NetworkSpec(bridge=".."),
        "NetworkSpec.bridge: '..' is not the name of a network device",
        "",
    ),
    "an option in place of a bridge": (
        lambda: kvm.NetworkSpec(bridge="-x"),
        "NetworkSpec.bridge: '-x' is not the name of a network device",
        "",
    ),
    "a VLAN twice": (
        lambda: kvm.NetworkSpec(bridge="br0", trunk=[5, 5]),
        "NetworkSpec.trunk: [5, 5] names a VLAN twice",
        "name each once",
    ),
    "a VLAN with and without a tag": (
        lambda: kvm.NetworkSpec(bridge="br0", vlan=5, trunk=[6, 5]),
        "NetworkSpec.trunk: [6, 5] names a VLAN twice, or that of vlan=",
        "name each once",
    ),
    "addresses on a trunk alone": (
        lambda: kvm.NetworkSpec(bridge="br0", trunk=[5, 6], subnet6="fd00:1::/64"),
        "NetworkSpec.subnet6: frames without a tag lead nowhere with trunk= alone",
        "name a VLAN for them, vlan=",
    ),
    "a truth value in place of a VLAN": (
        lambda: kvm.NetworkSpec(bridge="br0", trunk=[True]),
        "NetworkSpec.trunk: [True] is no list of VLANs",
        "write [5, 6]",
    ),
    "a text in place of VLANs": (
        lambda: kvm.NetworkSpec(bridge="br0", trunk="5"),
        "NetworkSpec.trunk: '5' is no list of VLANs",
        "write [5, 6]",
    ),
    "VLAN of the switch": (
        lambda: kvm.NetworkSpec(backend="switch", vlan=5),
        "NetworkSpec.vlan: given without a bridge of the host",
        'bridge="br0"',
    ),
    "bridge": (
        lambda: kvm.NetworkSpec(bridge="my bridge"),
        "NetworkSpec.bridge: 'my bridge' is not the name of a network device",
        "",
    ),
    "bridge and forward": (
        lambda: kvm.NetworkSpec(bridge="br0", forward="nat"),
        "NetworkSpec.bridge: given together with forward='nat'",
        "choose one",
    ),
    "virtualport": (
        lambda: kvm.NetworkSpec(bridge="br0", virtualport="openvswich"),
        "NetworkSpec.virtualport: 'openvswich' is not one of 'openvswitch'",
        "did you mean 'openvswitch'?",
    ),
    "bandwidth of Open vSwitch": (
        lambda: kvm.NetworkSpec(bridge="br0", virtualport="openvswitch", inbound="1Mbit"),
        "NetworkSpec.virtualport: given together with inbound or outbound",
        "leave them out, and use rate() in tests",
    ),
    "vlan without a bridge": (
        lambda: kvm.NetworkSpec(vlan=5),
        "NetworkSpec.vlan: given without a bridge of the host",
        'bridge="br0"',
    ),
    "vlan": (
        lambda: kvm.NetworkSpec(bridge="br0", vlan=4095),
        "NetworkSpec.vlan: 4095 is no VLAN from 1 to 4094",
        "",
    ),
    "one VLAN in place of a list": (
        lambda: kvm.NetworkSpec(bridge="br0", trunk=6),
        "NetworkSpec.trunk: 6 is not a list",
        "",
    ),
    "trunk": (
        lambda: kvm.NetworkSpec(bridge="br0", trunk=[6, 0]),
        "NetworkSpec.trunk: 0 is no VLAN from 1 to 4094",
        "",
    ),
    "forward without addresses": (
        lambda: kvm.NetworkSpec(forward="routed", subnet=None, subnet6=None),
        "NetworkSpec.forward: 'routed', and the segment has no addresses",
        "give it a subnet or a subnet6",
    ),
    "forward without room": (
        lambda: kvm.NetworkSpec(forward="nat", subnet="10.1.0.0/31"),
        "NetworkSpec.subnet: 10.1.0.0/31 is too small for a segment with forward='nat'",
        "the host has an address there, too",
    ),
    "the host's address": (
        lambda: kvm.Nic(OUT, address="10.2.0.1"),
        "Nic.address: 10.2.0.1 is the host's own address on out",
        "choose another",
    ),
    "mtu for IPv6": (
        lambda: kvm.NetworkSpec(mtu=576),
        "NetworkSpec.mtu: 576 is no number",
        "at least 1280, as IPv6 needs (or subnet6=None)",
    ),
    "user": (lambda: kvm.User("A b"), "User.name: 'A b' is not a user name", ""),
    "root": (lambda: kvm.User("root"), "User.name: root exists already", "leave it out"),
    "file path": (lambda: kvm.File("etc/x"), "File.path: 'etc/x' is not an absolute path", ""),
    "file mode": (lambda: kvm.File("/x", mode=77777), "File.mode: 77777 is not a file mode", "0o644"),
    "file owner": (lambda: kvm.File("/x", owner="a b"), "File.owner: 'a b' is not user or user:group", ""),
    "file twice": (
        lambda: kvm.CloudInit(files=[kvm.File("/x"), kvm.File("/x")]),
        "CloudInit.files: /x stands there twice",
        "",
    ),
    "lone command": (
        lambda: kvm.CloudInit(run_commands="ls"),
        "CloudInit.run_commands: 'ls' is one command",
        "",
    ),
    "datasource": (lambda: kvm.CloudInit(datasource="ec2"), "CloudInit.datasource: 'ec2' is not one of", ""),
    "netplan on a config drive": (
        lambda: kvm.CloudInit(datasource="configdrive", network_config={}),
        "CloudInit.network_config: a ConfigDrive carries",
        "nocloud",
    ),
    "lone step": (
        lambda: kvm.GuestSpec(prepare=kvm.Script("true")),
        "GuestSpec.prepare: Script('true') is one step",
        "[Script('true')]",
    ),
    "lone command to prepare": (
        lambda: kvm.GuestSpec(prepare="ls"),
        "GuestSpec.prepare: 'ls' is one step",
        "['ls']",
    ),
    "path as a step": (
        lambda: kvm.GuestSpec(prepare=["true", Path("setup.sh")]),
        "GuestSpec.prepare[1]: 'setup.sh' is a path",
        "Script(file='setup.sh')",
    ),
    "no step": (
        lambda: kvm.GuestSpec(prepare=[7]),
        "GuestSpec.prepare[0]: 7 is neither a command, a Script nor a HostFile",
        "",
    ),
    "bytes as a step": (lambda: kvm.GuestSpec(prepare=[b"ls"]), "GuestSpec.prepare[0]: b'ls' is neither", ""),
    "empty command": (
        lambda: kvm.GuestSpec(prepare=[[]]),
        "GuestSpec.prepare[0]: [] is not a command that can be run",
        "",
    ),
    "blank command": (lambda: kvm.GuestSpec(prepare=[" "]), "GuestSpec.prepare[0]: ' ' is not a command", ""),
    "word of a step": (
        lambda: kvm.GuestSpec(prepare=[["ls", 1]]),
        "GuestSpec.prepare[0][1]: 1 is not a str",
        "",
    ),
    "NUL in a step": (lambda: kvm.GuestSpec(prepare=["a\0b"]), "GuestSpec.prepare[0]: 'a\\x00b' is not", ""),
    "no right to prepare": (
        lambda: kvm.GuestSpec(
            prepare=["true"], login="bob", cloud_init=kvm.CloudInit(users=[kvm.User("bob", sudo=False)])
        ),
        "GuestSpec.prepare: steps run as root, and the login 'bob' has sudo=False",
        "root",
    ),
    "no script": (kvm.Script, "Script: one of content and file is wanted", "Script("),
    "two scripts": (lambda: kvm.Script("true", file="a"), "Script: one of content and file", ""),
    "path as a script": (
        lambda: kvm.Script(Path("setup.sh")),
        "Script.content: 'setup.sh' is a path",
        "Script(file='setup.sh')",
    ),
    "blank script": (lambda: kvm.Script("\n"), "Script.content: '\\n' is not a script", ""),
    "script file": (lambda: kvm.Script(file=""), "Script.file: '' is not a path", ""),
    "interpreter": (
        lambda: kvm.Script("true", interpreter="bash"),
        "Script.interpreter: 'bash' is not an absolute path",
        "",
    ),
    "host file": (lambda: kvm.HostFile(7, "/x"), "HostFile.source: 7 is not a path", ""),
    "host file's place": (lambda: kvm.HostFile("a", "x"), "HostFile.path: 'x' is not an absolute path", ""),
    "host file's mode": (lambda: kvm.HostFile("a", "/x", mode=-1), "HostFile.mode: -1 is not", "0o644"),
    "host file's owner": (
        lambda: kvm.HostFile("a", "/x", owner="-R"),
        "HostFile.owner: '-R' is not user or user:group",
        "",
    ),
    "identity": (lambda: kvm.GuestSpec(identity="own"), "GuestSpec.identity: 'own' is not one of", "unique"),
    "reset": (lambda: kvm.GuestSpec(reset=False), "GuestSpec.reset: False is not one of", "never"),
    "kernel errors": (
        lambda: kvm.GuestSpec(kernel_errors="error"),
        "GuestSpec.kernel_errors: 'error' is not one of",
        "warn",
    ),
    "kernel warnings": (
        lambda: kvm.GuestSpec(kernel_warnings=True),
        "GuestSpec.kernel_warnings: True is not one of",
        "ignore",
    ),
    "allowed kernel errors": (
        lambda: kvm.GuestSpec(allow_kernel_errors=["(unclosed"]),
        "GuestSpec.allow_kernel_errors: '(unclosed' is not a regular expression: missing ), unterminated",
        "re.escape()",
    ),
    "one allowed kernel error": (
        lambda: kvm.GuestSpec(allow_kernel_errors="oops"),
        "GuestSpec.allow_kernel_errors: 'oops' is one item, a list is wanted",
        "write ['oops']",
    ),
    "gates": (lambda: kvm.GuestSpec(gates="err"), "GuestSpec.gates: 'err' is not of class Gates", ""),
    "gate": (lambda: kvm.Gates(units=True), "Gates has no field 'units'", "failed_units"),
    "a gate's truth value": (lambda: kvm.Gates(avc="yes"), "Gates.avc: 'yes' is not True or False", ""),
    "a gate's priority": (
        lambda: kvm.Gates(journal="error"),
        "Gates.journal: 'error' is not one of",
        "'err'",
    ),
    "a gate's number": (lambda: kvm.Gates(journal=3), "Gates.journal: 3 is not one of", "'emerg'"),
    "what a gate allows": (
        lambda: kvm.Gates(avc=True, allow_avc=["(unclosed"]),
        "Gates.allow_avc: '(unclosed' is not a regular expression",
        "re.escape()",
    ),
    "one that a gate allows": (
        lambda: kvm.Gates(failed_units=True, allow_failed_units="a.service"),
        "Gates.allow_failed_units: 'a.service' is one item, a list is wanted",
        "write ['a.service']",
    ),
    "what a gate allows that is off": (
        lambda: kvm.Gates(allow_journal=["a"]),
        "Gates.allow_journal: the gate journal is off, so there is nothing to allow",
        'name the gate, too: journal="err"',
    ),
    "gates of a guest without root": (
        lambda: kvm.GuestSpec(
            login="bob",
            cloud_init=kvm.CloudInit(users=[kvm.User("bob", sudo=False)]),
            gates=kvm.Gates(avc=True),
        ),
        "GuestSpec.gates: the guest is asked as root, and the login 'bob' has sudo=False",
        "log in as root",
    ),
    "a number as a string": (
        lambda: kvm.GuestSpec(boot_timeout="60"),
        "GuestSpec.boot_timeout: '60' is not a number or None",
        "",
    ),
    "a word for a switch": (lambda: kvm.User("a", sudo="yes"), "User.sudo: 'yes' is not True or False", ""),
    "a mapping for a part": (
        lambda: kvm.GuestSpec(cloud_init={"users": []}),
        "GuestSpec.cloud_init: {'users': []} is not a CloudInit",
        "",
    ),
    "user-data that is no YAML": (
        lambda: kvm.CloudInit(user_data="#cloud-config\npackages: [nginx"),
        "CloudInit.user_data: the cloud-config is no YAML (line 2, column",
        "expected",
    ),
    "user-data that is a list": (
        lambda: kvm.CloudInit(user_data="#cloud-config\n- a\n"),
        "CloudInit.user_data: the cloud-config is a list, a mapping is wanted",
        "one key a line",
    ),
    "user-data that is a text": (
        lambda: kvm.CloudInit(user_data="#cloud-config\nruncmd"),
        "CloudInit.user_data: the cloud-config is the text 'runcmd'",
        "",
    ),
    "user-data with a number for a list": (
        lambda: kvm.CloudInit(user_data="#cloud-config\npackages: [x]\nruncmd:   5\n"),
        "CloudInit.user_data: runcmd is the number 5 (line 3, column 11), cloud-init wants a list",
        "examples",
    ),
    "user-data with a list for a mapping": (
        lambda: kvm.CloudInit(user_data={"power_state": ["reboot"]}),
        "CloudInit.user_data: power_state is a list, cloud-init wants a mapping",
        "",
    ),
    "vendor-data with a text for a list": (
        lambda: kvm.CloudInit(vendor_data={"runcmd": "ls"}),
        "CloudInit.vendor_data: runcmd is the text 'ls', cloud-init wants a list",
        "",
    ),
    "user-data with a value that is none of YAML's": (
        lambda: kvm.CloudInit(user_data={"write_files": [{"path": Path("/x")}]}),
        "CloudInit.user_data: PosixPath('/x') cannot be written as YAML",
        "`str(path)`",
    ),
    "a network config with a value that is none of YAML's": (
        lambda: kvm.CloudInit(network_config={"ethernets": {"kvm-nic1": {"mtu": kvm.Nic()}}}),
        "CloudInit.network_config: Nic() cannot be written as YAML",
        "",
    ),
    "user-data without a header": (
        lambda: kvm.CloudInit(user_data="runcmd: [ls]\n"),
        "CloudInit.user_data: cloud-init ignores a text that begins with 'runcmd: [ls]'",
        "begin with #cloud-config",
    ),
    "network config": (lambda: kvm.CloudInit(network_config="x"), "CloudInit.network_config: str is not", ""),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_names_field_and_remedy(mistake):
    make, brief, remedy = MISTAKES[mistake]
    with pytest.raises(kvm.SpecError) as caught:
        make()
    assert caught.value.brief.startswith(brief) or brief in caught.value.brief
    assert remedy in str(caught.value)


ODD = [7, -1, 1.5, True, None, "60", "", b"x", Path("x"), [], [1], ["a"], [None], ("a",), {}, {"a": 1}, {1}]
ODD += [object(), kvm.Nic(), kvm.Disk(size="1GiB"), len, float("nan"), 10**30, "a\0b", "ü"]
NEEDED = {
    kvm.CloudInit: {},
    kvm.Disk: {"size": "1GiB"},
    kvm.File: {"path": "/x"},
    kvm.GuestSpec: {},
    kvm.HostFile: {"source": "x", "path": "/x"},
    kvm.ImageRef: {"name": "x"},
    kvm.Nic: {},
    kvm.Script: {"content": "x"},
    kvm.User: {"name": "x"},
}


def told(kind, name, value):
    """Return the mistake that a value is said to be, "" if it is none, None if something else was raised."""
    try:
        made = kind(**{**NEEDED[kind], name: value})
    except kvm.SpecError as mistake:
        return mistake.brief
    except Exception:  # noqa: BLE001 - that is what the test is about
        return None
    return "" if misfit(kind, name, value=getattr(made, name)) is None else None


def test_whatever_a_field_is_given_it_takes_or_names_as_a_mistake():
    offenders = []
    for kind in NEEDED:
        for name in (field.name for field in dataclasses.fields(kind)):
            for value in ODD:
                said = told(kind, name, value)
                # Image names are told by the ImageRef that GuestSpec.image makes.
                if said is None or (said and name not in said and not said.startswith("ImageRef.name")):
                    offenders.append(f"{kind.__name__}.{name} = {value!r}: {said}")
    assert offenders == []


def test_sizes_are_binary():
    assert parse_kib("1GiB", field="x") == 1024**2
    assert parse_kib("1.5 MiB", field="x") == 1536
    with pytest.raises(kvm.SpecError):
        parse_kib("0.0001KiB", field="x")


def test_bandwidths_are_decimal():
    texts = ["1.5Gbit", " 10 mbit", "500KBIT", "7bit", 2, 1.5]
    assert [parse_bits_per_second(text, field="x") for text in texts] == [1.5e9, 1e7, 5e5, 7, 2, 1.5]
    odd = ("10", "1MiB", "-1bit", "0bit", 0, -1, 1e-9, 10**400, float("nan"), float("inf"), True, None)
    for wrong in (*odd, "9" * 400 + "bit"):
        with pytest.raises(kvm.SpecError, match="x: .* is not a bandwidth"):
            parse_bits_per_second(wrong, field="x")


def test_a_spec_is_short_to_print():
    spec = kvm.GuestSpec("debian-13", memory="512MiB", disks=[kvm.Disk(size="1GiB", serial="data")])
    assert repr(spec) == "GuestSpec('debian-13', memory='512MiB', disks=[Disk(size='1GiB', serial='data')])"
    assert repr(kvm.GuestSpec()) == "GuestSpec()"


def test_a_spec_cannot_be_changed_only_replaced():
    spec = kvm.GuestSpec(packages=["vim"])
    with pytest.raises(dataclasses.FrozenInstanceError):
        spec.memory = "2GiB"
    assert dataclasses.replace(spec, memory="2GiB").packages == ("vim",)


def test_raw_user_data_is_copied():
    raw = {"a": {"b": [1]}}
    config = kvm.CloudInit(user_data=raw)
    raw["a"]["b"].append(2)
    assert config.user_data == {"a": {"b": [1]}}


@pytest.mark.parametrize(
    "value", ["2020-13-45", "!!int abc", "!!int ''", "!!float q", "!!timestamp t", "!!bool maybe", "a\tb: ["]
)
def test_values_that_are_no_yaml_are_told_with_their_place(value):
    with pytest.raises(kvm.SpecError, match=r"CloudInit.user_data: the .* no YAML \(line 3, column \d+\)"):
        kvm.CloudInit(user_data=f"#cloud-config\nlocale: C\nntp: {value}")


def test_user_data_nested_beyond_measure_is_told():
    with pytest.raises(kvm.SpecError, match="no YAML"):
        kvm.CloudInit(user_data="#cloud-config\nntp: " + "[" * 5000)


@pytest.mark.parametrize(
    "text",
    [
        "#cloud-config\n",
        "#Cloud-Config\nruncmd:\n",
        "\n#cloud-config\nusers: default\nmystery: 5\n",
        "#!/bin/sh\n",
        "## template: jinja\n#cloud-config\nruncmd: {{ x }}\n",
        "#include\nhttp://localhost/\n",
        "#cloud-config-archive\n- type: text/cloud-config\n",
        "#cloud-boothook\n",
        "#part-handler\n",
        "Content-Type: multipart/mixed\nMIME-Version: 1.0\n",
    ],
)
def test_user_data_that_cloud_init_knows_is_taken_as_it_is(text):
    assert kvm.CloudInit(user_data=text).user_data == text


def test_steps_are_frozen_and_host_paths_are_paths():
    spec = kvm.GuestSpec(
        prepare=["a | b", ["c", "d e"], kvm.Script(file="s.sh"), kvm.HostFile("x", "/opt/", owner="1000:100")]
    )
    assert spec.prepare[:2] == ("a | b", ("c", "d e"))
    assert (spec.prepare[2].file, spec.prepare[3].source) == (Path("s.sh"), Path("x"))
