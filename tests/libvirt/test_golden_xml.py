"""What render writes is what libvirt reads and starts."""

from __future__ import annotations

import xml.etree.ElementTree as ET

import pytest

from pytest_kvm.errors import NetworkFailed
from pytest_kvm.hypervisor.connect import open_hypervisor
from tests.conftest import ROOT

NETWORKS = sorted((ROOT / "tests/golden/networks").glob("*.xml"))
GOLDEN = sorted((ROOT / "tests/golden").glob("*.xml"))


def test_there_is_golden_xml():
    assert GOLDEN
    assert NETWORKS


@pytest.mark.parametrize("file", GOLDEN, ids=lambda file: file.stem)
def test_libvirt_accepts_and_starts_golden_xml(file, tmp_path):
    root = ET.parse(file).getroot()
    root.set("type", "test")  # the one word that names the driver
    hypervisor = open_hypervisor("test:///default", run_dir=tmp_path / "run", cache_dir=tmp_path / "cache")
    domain = hypervisor.create(ET.tostring(root, encoding="unicode"))
    try:
        assert root.findtext("uuid") == domain.uuid
        live = ET.fromstring(domain.xml())
        for device in ("disk", "interface", "serial", "console", "channel", "rng", "video"):
            wanted, got = (len(tree.findall(f"devices/{device}")) for tree in (root, live))
            assert got >= wanted, f"libvirt dropped a {device}"
    finally:
        domain.destroy()
        hypervisor.close()


@pytest.mark.parametrize("file", NETWORKS, ids=lambda file: file.stem)
def test_libvirt_makes_and_removes_golden_networks(file, tmp_path):
    hypervisor = open_hypervisor("test:///default", run_dir=tmp_path / "run", cache_dir=tmp_path / "cache")
    uuid = ET.parse(file).getroot().findtext("uuid", "")
    hypervisor.create_network(file.read_text())
    with pytest.raises(NetworkFailed, match="libvirt could not make a network: .*already"):
        hypervisor.create_network(file.read_text())
    hypervisor.remove_network(uuid)
    hypervisor.remove_network(uuid)
    hypervisor.create_network(file.read_text())
    hypervisor.remove_network(uuid)
    hypervisor.close()
