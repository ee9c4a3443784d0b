"""A seed reads back as cloud-init's datasources would read it."""

from __future__ import annotations

import io
import json

import pycdlib
import pytest
import yaml

import pytest_kvm as kvm
from pytest_kvm.render.seed import seed_bytes
from tests.golden_cases import CONTROL_MAC, IDENTITY


def opened(spec):
    iso = pycdlib.PyCdlib()
    iso.open_fp(io.BytesIO(seed_bytes(spec, IDENTITY, control_mac=CONTROL_MAC, nics=[], packages=[])))
    return iso


def read(iso, **path):
    target = io.BytesIO()
    iso.get_file_from_iso_fp(target, **path)
    return target.getvalue().decode()


@pytest.mark.parametrize("names", ["rr_path", "joliet_path"])
def test_nocloud_layout(names):
    spec = kvm.GuestSpec(cloud_init=kvm.CloudInit(vendor_data={"bootcmd": ["true"]}))
    iso = opened(spec)
    assert iso.pvd.volume_identifier.strip() == b"cidata"
    assert yaml.safe_load(read(iso, **{names: "/meta-data"}))["instance-id"] == IDENTITY.instance_id
    assert read(iso, **{names: "/user-data"}).startswith("#cloud-config\n")
    assert yaml.safe_load(read(iso, **{names: "/network-config"}))["version"] == 2
    assert yaml.safe_load(read(iso, **{names: "/vendor-data"})) == {"bootcmd": ["true"]}


def test_without_vendor_data_there_is_no_file():
    names = [child.file_identifier() for child in opened(kvm.GuestSpec()).list_children(iso_path="/")]
    assert len(names) == 2 + 3  # itself, its parent, three files


@pytest.mark.parametrize("names", ["rr_path", "joliet_path"])
def test_config_drive_layout(names):
    config = kvm.CloudInit(datasource="configdrive", vendor_data={"bootcmd": ["true"]})
    iso = opened(kvm.GuestSpec(cloud_init=config, internet=True))
    assert iso.pvd.volume_identifier.strip() == b"config-2"
    folder = "/openstack/latest"
    assert json.loads(read(iso, **{names: f"{folder}/meta_data.json"}))["uuid"] == IDENTITY.instance_id
    assert read(iso, **{names: f"{folder}/user_data"}).startswith("#cloud-config\n")
    network = json.loads(read(iso, **{names: f"{folder}/network_data.json"}))
    assert network["links"][0]["ethernet_mac_address"] == CONTROL_MAC
    assert network["networks"][0]["routes"]
    assert "cloud-init" in json.loads(read(iso, **{names: f"{folder}/vendor_data.json"}))
