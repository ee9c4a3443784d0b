"""The XML of a frozen guest, as it is put into another run."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from pytest_kvm.errors import SpecError
from pytest_kvm.render.thawed_xml import (
    NewPlace,
    boot_files_of,
    disks_of,
    firmware_of,
    host_cards_of,
    needs_kvm,
    other_disks_of,
    size_of,
    thawed_xml,
)

QEMU = "{http://libvirt.org/schemas/domain/qemu/1.0}"
KVM = "{https://pytest-kvm.dev/xmlns/domain/1}"
RAM = {
    "qom-type": "memory-backend-file",
    "id": "kvm-ram",
    "size": 4096,
    "mem-path": "/old/ram",
    "share": False,
}
CABLE = {
    "type": "stream",
    "id": "kvmsegment1",
    "server": False,
    "addr": {"type": "unix", "path": "/old/nic1"},
}
CONTROL = {"type": "user", "id": "kvmcontrol"}
ARGUMENTS = [
    "-netdev", json.dumps(CONTROL),
    "-object", json.dumps(RAM | {"x-use-canonical-path-for-ramblock-id": False}),
    "-machine", "memory-backend=kvm-ram",
    "-incoming", "defer",
    "-netdev", json.dumps(CABLE),
]  # fmt: skip
XML = f"""
<domain type='qemu' id='7' xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'>
  <name>old-web</name>
  <uuid>00000000-0000-4000-8000-000000000001</uuid>
  <genid>00000000-0000-4000-8000-000000000002</genid>
  <metadata>
    <kvm:run xmlns:kvm='https://pytest-kvm.dev/xmlns/domain/1'>
      <kvm:session>old</kvm:session>
      <kvm:owner pid='1' started='1.00'/>
    </kvm:run>
  </metadata>
  <memory unit='KiB'>524288</memory>
  <vcpu placement='static'>2</vcpu>
  <os firmware='efi'>
    <type arch='x86_64' machine='pc-q35-7.2'>hvm</type>
    <firmware><feature enabled='no' name='secure-boot'/></firmware>
    <loader readonly='yes' type='pflash'>/usr/share/OVMF.fd</loader>
    <nvram template='/usr/share/VARS.fd'>/old/vars.fd</nvram>
    <kernel>/old/kernel</kernel>
  </os>
  <devices>
    <emulator>/old/qemu</emulator>
    <disk type='file' device='disk'>
      <driver name='qemu' type='qcow2'/>
      <source file='/old/root.qcow2' index='2'/>
      <backingStore type='file' index='3'><source file='/old/image'/></backingStore>
      <target dev='vda' bus='virtio'/>
      <alias name='virtio-disk0'/>
      <address type='pci' bus='0x02'/>
    </disk>
    <disk type='file' device='disk'>
      <source file='/old/seed.iso' index='1'/><readonly/><alias name='ua-mine'/>
    </disk>
    <serial type='unix'>
      <source mode='bind' path='/old/console.sock'/><log file='/old/console.log' append='off'/>
      <alias name='serial0'/>
    </serial>
    <channel type='unix'><source mode='bind' path='/old/agent.sock'/><alias name='channel0'/></channel>
    <channel type='spicevmc'/>
  </devices>
  <seclabel type='dynamic' model='dac' relabel='yes'><label>+1:+1</label></seclabel>
  <qemu:commandline>{"".join(f"<qemu:arg value='{each}'/>" for each in ARGUMENTS)}</qemu:commandline>
</domain>
"""


def place(**changes):
    given = {
        "name": "new-web",
        "uuid": "00000000-0000-4000-8000-000000000009",
        "session": "new",
        "owner_pid": 4711,
        "owner_started": 12.5,
        "folder": Path("/new"),
        "disks": [Path("/new/disk0.qcow2"), Path("/new/disk1.raw")],
        "boot_files": {"kernel": Path("/blobs/k"), "nvram": Path("/new/nvram")},
        "run_as": None,
    }
    return NewPlace(**(given | changes))


@pytest.fixture
def thawed():
    return ET.fromstring(thawed_xml(XML, place()))


def test_nothing_of_the_old_place_is_left(thawed):
    assert "/old/" not in ET.tostring(thawed, encoding="unicode")
    assert "id" not in thawed.attrib
    assert thawed.findtext("name") == "new-web"
    assert thawed.findtext("uuid") == "00000000-0000-4000-8000-000000000009"
    assert thawed.findtext(f"metadata/{KVM}run/{KVM}session") == "new"
    owner = thawed.find(f"metadata/{KVM}run/{KVM}owner")
    assert owner.attrib == {"pid": "4711", "started": "12.50"}


def test_the_guest_keeps_what_it_can_see(thawed):
    assert thawed.findtext("genid") == "00000000-0000-4000-8000-000000000002"
    assert thawed.find("os/type").get("machine") == "pc-q35-7.2"
    assert thawed.find("devices/disk/address").get("bus") == "0x02"
    assert thawed.findtext("os/loader") == "/usr/share/OVMF.fd"
    assert thawed.findtext("os/nvram") == "/new/nvram"
    assert thawed.findtext("os/kernel") == "/blobs/k"


def test_libvirt_chooses_no_firmware(thawed):
    assert "firmware" not in thawed.find("os").attrib
    assert thawed.find("os/firmware") is None


def test_disks_console_and_agent(thawed):
    sources = [each.attrib for each in thawed.iterfind("devices/disk/source")]
    assert sources == [{"file": "/new/disk0.qcow2"}, {"file": "/new/disk1.raw"}]
    assert thawed.find("devices/disk/backingStore") is None
    assert [each.get("name") for each in thawed.iterfind("devices/*/alias")] == ["ua-mine"]
    assert thawed.find("devices/serial/log").attrib == {"file": "/new/console.log", "append": "on"}
    paths = [each.get("path") for each in thawed.iterfind("devices/*[@type='unix']/source")]
    assert paths == ["/new/console.sock", "/new/agent.sock"]


def test_memory_is_qemus_own_and_cables_lead_nowhere(thawed):
    arguments = [each.get("value") for each in thawed.iterfind(f"{QEMU}commandline/{QEMU}arg")]
    assert "-incoming" not in arguments
    assert "defer" not in arguments
    assert arguments[:2] == ["-netdev", json.dumps(CONTROL)]
    assert json.loads(arguments[3]) == {
        "qom-type": "memory-backend-ram", "id": "kvm-ram", "size": 4096,
        "x-use-canonical-path-for-ramblock-id": False,
    }  # fmt: skip
    assert arguments[4:6] == ["-machine", "memory-backend=kvm-ram"]
    cable = json.loads(arguments[-1])
    assert (cable["type"], cable["id"]) == ("hubport", "kvmsegment1")


def test_a_systems_daemon_runs_it_as_this_user(thawed):
    assert thawed.find("seclabel") is None
    moved = ET.fromstring(thawed_xml(XML, place(run_as=(1000, 100))))
    assert moved.findtext("seclabel/label") == "+1000:+100"


def test_what_is_read_of_a_domain():
    assert disks_of(XML) == [
        (Path("/old/root.qcow2"), "qcow2", True), (Path("/old/seed.iso"), "raw", False)
    ]  # fmt: skip
    assert other_disks_of(XML) == []
    block = "<disk type='block'><source dev='/dev/loop0'/><target dev='vdc'/></disk>"
    assert other_disks_of(XML.replace("</devices>", f"{block}</devices>")) == ["vdc"]
    assert firmware_of(XML) == Path("/usr/share/OVMF.fd")
    assert firmware_of("<domain/>") is None
    assert boot_files_of(XML) == {"kernel": Path("/old/kernel"), "nvram": Path("/old/vars.fd")}
    assert size_of(XML) == (512, 2)
    assert not needs_kvm(XML)
    assert needs_kvm(XML.replace("type='qemu' id", "type='kvm' id"))
    assert host_cards_of(XML) == []
    card = "<interface type='network'><mac address='52:54:00:00:00:07'/></interface>"
    assert host_cards_of(XML.replace("</devices>", f"{card}</devices>")) == ["52:54:00:00:00:07"]


def test_what_is_no_xml():
    with pytest.raises(SpecError, match="the XML of the domain cannot be read: "):
        disks_of("<domain>")


def test_variables_of_the_firmware_by_source():
    xml = XML.replace(">/old/vars.fd<", ">\n  <source file='/old/vars.fd'/>\n<")
    assert boot_files_of(xml)["nvram"] == Path("/old/vars.fd")
    assert "/old/" not in thawed_xml(xml, place())


def test_arguments_of_the_users_own_stay():
    xml = XML.replace("memory-backend=kvm-ram", "{odd")
    assert 'value="{odd"' in thawed_xml(xml, place())


@pytest.mark.parametrize("memory", ["", "x", "1.5"])
def test_a_domain_without_a_size(memory):
    with pytest.raises(SpecError, match="the XML of the domain tells no size"):
        size_of(f"<domain><memory>{memory}</memory></domain>")


def test_a_domain_with_other_disks_than_were_kept():
    with pytest.raises(SpecError, match="the XML of the domain has 2 disks, not 1"):
        thawed_xml(XML, place(disks=[Path("/new/disk0.qcow2")]))
