"""What the pages' examples need, and what runs them.

Python blocks are run by Sybil, files named ``*_example.py`` by pytest itself.
"""

from __future__ import annotations

import xml.etree.ElementTree as ET
from typing import TYPE_CHECKING

from sybil import Sybil
from sybil.parsers.myst import PythonCodeBlockParser

import pytest_kvm as kvm

if TYPE_CHECKING:
    import pytest

pytest_collect_file = Sybil(
    parsers=[PythonCodeBlockParser()], patterns=["*.md"], excludes=["_build/**"]
).pytest()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """One guest serves all pages: those that switch it off come last."""
    items.sort(key=lambda item: item.path.name == "power_example.py")


@kvm.guest(scope="session")
def machine() -> kvm.GuestSpec:
    return kvm.GuestSpec(
        "debian-13",
        vcpus=1,
        hostname="machine",
        timezone="Europe/Berlin",
        packages=["nginx-light"],
        units=["nginx.service"],
        disks=[
            kvm.Disk(size="1GiB", serial="scratch"),
            kvm.Disk(size="64MiB", bus="scsi", format="raw", serial="small"),
        ],
        nics=[
            kvm.Nic(mac="52:54:00:00:00:77"),
            kvm.Nic(mac="52:54:00:00:00:78", link="down", dhcp=False),
        ],
        cloud_init=kvm.CloudInit(
            users=[kvm.User("alice", sudo=False, groups=["systemd-journal"])],
            files=[kvm.File("/etc/app/app.conf", "listen = 8080\n", mode=0o640, owner="alice:alice")],
            run_commands=["echo provisioned >/var/tmp/state", ["touch", "/var/tmp/a file"]],
            user_data={"bootcmd": ["touch /run/early"]},
        ),
        cmdline_extra="systemd.show_status=true",
        xml=with_title,
    )


def with_title(domain: ET.Element) -> ET.Element:
    """Give the domain a title: libvirt wants it after name, uuid and genid."""
    title = ET.Element("title")
    title.text = "a guest of the documentation"
    domain.insert(2, title)
    return domain
