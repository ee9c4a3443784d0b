"""What the pages' examples need, and what runs them.

Python blocks are run by Sybil, files named ``*_example.py`` by pytest itself.

Each guest here is somebody else's too, as a spec of its own is a cold boot of its own:
``machine`` is that of most tests, ``web`` that of ``example_suites/packages``, ``server``
that of ``tests/guests/test_spec.py``, ``alice`` and ``bob`` those of ``tests/core/test_segments.py``.
"""

from __future__ import annotations

import xml.etree.ElementTree as ET
from pathlib import Path

from sybil import Sybil
from sybil.parsers.myst import PythonCodeBlockParser

import pytest_kvm as kvm

pytest_collect_file = Sybil(
    parsers=[PythonCodeBlockParser()], patterns=["*.md"], excludes=["_build/**"]
).pytest()

DATA = Path(__file__).with_name("data.raw")
"""What the server is shown as a disk."""


@kvm.guest(scope="module")
def machine() -> kvm.GuestSpec:
    return kvm.GuestSpec(memory="512MiB", vcpus=1)


@kvm.guest(scope="module")
def web() -> kvm.GuestSpec:
    return kvm.GuestSpec(
        packages=["nginx-light"],
        units=["nginx.service"],
        cloud_init=kvm.CloudInit(files=[kvm.File("/var/www/html/hello", "hello\n")]),
    )


@kvm.network(scope="module")
def lan() -> kvm.NetworkSpec:
    return kvm.NetworkSpec(subnet="10.1.0.0/24", subnet6="fd00:1::/64")


@kvm.guest(scope="module")
def alice(lan: kvm.Segment) -> kvm.GuestSpec:
    return kvm.GuestSpec(
        memory="512MiB", vcpus=1, nics=[kvm.Nic(lan, address="10.1.0.5", address6="fd00:1::5")]
    )


@kvm.guest(scope="module")
def bob(lan: kvm.Segment) -> kvm.GuestSpec:
    return kvm.GuestSpec(memory="512MiB", vcpus=1, nics=[kvm.Nic(lan)])


@kvm.guest(scope="module")
def server() -> kvm.GuestSpec:
    return kvm.GuestSpec(
        memory="768MiB",
        hostname="server.example.org",
        timezone="Europe/Berlin",
        root_size="9GiB",
        disks=[
            kvm.Disk(size="1GiB", serial="scratch"),
            kvm.Disk(size="64MiB", bus="scsi", format="raw", serial="small"),
            kvm.Disk(file=DATA, serial="data"),
            kvm.Disk(file=DATA, bus="usb", readonly=True),
        ],
        nics=[
            kvm.Nic(mac="52:54:00:00:00:77"),
            kvm.Nic(mac="52:54:00:00:00:78", link="down", dhcp=False),
        ],
        cloud_init=kvm.CloudInit(
            users=[kvm.User("alice", groups=["systemd-journal"]), kvm.User("bob", sudo=False)],
            files=[
                kvm.File("/etc/app/app.conf", "listen = 8080\n", mode=0o640, owner="alice:alice"),
                kvm.File("/etc/app/key", bytes(range(256)), mode=0o400),
                kvm.File("/etc/systemd/system/app.service", "[Service]\nExecStart=sleep infinity\n"),
            ],
            run_commands=["systemctl start --no-block app", ["touch", "/var/tmp/a file; not two"]],
            user_data={"bootcmd": ["touch /run/early"]},
            vendor_data={"final_message": "the server is made"},
        ),
        units=["app.service"],
        console="virtio",
        cmdline_extra="app.mode=test",
        xml=with_title,
    )


def with_title(domain: ET.Element) -> ET.Element:
    """Give the domain a title: libvirt wants it after name, uuid and genid."""
    title = ET.Element("title")
    title.text = "a guest of the documentation"
    domain.insert(2, title)
    return domain
