"""A guest's seed: which files under which label."""

from __future__ import annotations

import json
from collections.abc import Sequence

from pytest_kvm.render.cloud_config import Identity, meta_data, network_config, user_data, vendor_data
from pytest_kvm.render.config_drive import network_data, open_stack_meta_data
from pytest_kvm.render.plan import NicPlan
from pytest_kvm.render.seed_iso import iso_bytes
from pytest_kvm.spec.guest import GuestSpec

NOCLOUD_LABEL = "cidata"
CONFIG_DRIVE_LABEL = "config-2"


def seed_bytes(
    spec: GuestSpec, identity: Identity, *, control_mac: str, nics: Sequence[NicPlan], packages: Sequence[str]
) -> bytes:
    """Return the seed ISO; arguments as for :func:`seed_files`."""
    label, files = seed_files(spec, identity, control_mac=control_mac, nics=nics, packages=packages)
    return iso_bytes(label, files)


def seed_files(
    spec: GuestSpec, identity: Identity, *, control_mac: str, nics: Sequence[NicPlan], packages: Sequence[str]
) -> tuple[str, dict[str, str]]:
    """Return the seed's volume label and its files, in the layout the spec's datasource reads.

    Args:
        spec: The guest as its user wants it.
        identity: Who this guest is.
        control_mac: The control card's MAC address.
        nics: The further cards, in order.
        packages: What is left for cloud-init to install.
    """
    data = user_data(spec, identity, packages=packages)
    vendor = vendor_data(spec.cloud_init)
    if spec.cloud_init.datasource == "configdrive":
        files = {
            "openstack/latest/meta_data.json": open_stack_meta_data(identity),
            "openstack/latest/user_data": data,
            "openstack/latest/network_data.json": network_data(spec, control_mac=control_mac, nics=nics),
        }
        if vendor is not None:
            files["openstack/latest/vendor_data.json"] = json.dumps({"cloud-init": vendor})
        return CONFIG_DRIVE_LABEL, files
    files = {
        "meta-data": meta_data(identity),
        "user-data": data,
        "network-config": network_config(spec, control_mac=control_mac, nics=nics),
    }
    if vendor is not None:
        files["vendor-data"] = vendor
    return NOCLOUD_LABEL, files
