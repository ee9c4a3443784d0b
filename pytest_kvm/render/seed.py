"""Renders a guest's seed: its files and its volume label.

NoCloud and ConfigDrive hold the same data in two layouts:
https://docs.cloud-init.io/en/latest/reference/datasources/nocloud.html and
https://docs.cloud-init.io/en/latest/reference/datasources/configdrive.html;
``network_data.json``: https://docs.openstack.org/nova/latest/user/metadata.html.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from ipaddress import IPv4Interface, IPv6Interface, ip_address, ip_interface
from typing import Any

from pytest_kvm.render.cloud_config import Identity, meta_data, network_config, user_data, vendor_data
from pytest_kvm.render.plan import NicPlan, SegmentNicPlan
from pytest_kvm.render.seed_iso import iso_bytes
from pytest_kvm.spec.guest import GuestSpec
from pytest_kvm.spec.nic import CONTROL_ADDRESS, CONTROL_DNS, CONTROL_GATEWAY

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
    """Return the seed's volume label and its files, in the layout of the spec's datasource.

    Args:
        spec: What the guest is made of.
        identity: Names and keys of this machine.
        control_mac: The control card's MAC address.
        nics: The machine's cards; a template has none on segments.
        packages: Packages that cloud-init is to install, as the image does not have them.
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


_ANY = {4: "0.0.0.0", 6: "::"}  # noqa: S104 - a route's destination, nothing listens there


def open_stack_meta_data(identity: Identity) -> str:
    """Return ``openstack/latest/meta_data.json``."""
    return json.dumps(
        {
            "uuid": identity.instance_id,
            "name": identity.hostname,
            "hostname": identity.hostname,
            "public_keys": {"pytest-kvm": identity.authorized_key},
        }
    )


def network_data(spec: GuestSpec, *, control_mac: str, nics: Sequence[NicPlan]) -> str:
    """Return ``openstack/latest/network_data.json``.

    Its routes have no metric, so there is only the one default route of each version that is preferred.
    """
    services = [{"type": "dns", "address": CONTROL_DNS}] if spec.internet else []
    routers: dict[int, str] = {4: CONTROL_GATEWAY} if spec.internet else {}
    links: list[dict[str, Any]] = [{"id": "link0", "type": "phy", "ethernet_mac_address": control_mac}]
    networks = [
        _static_network(
            "control", link=0, address=ip_interface(f"{CONTROL_ADDRESS}/24"), router=routers.get(4)
        )
    ]
    for planned in nics:
        index = planned.index + 1
        link: dict[str, Any] = {"id": f"link{index}", "type": "phy", "ethernet_mac_address": planned.mac}
        links.append(link)
        if planned.nic.uses_dhcp:
            networks.append({"id": f"network{index}", "link": f"link{index}", "type": "ipv4_dhcp"})
        if not isinstance(planned, SegmentNicPlan):
            continue
        link["mtu"] = planned.mtu
        gateways: dict[int, str] = {ip_address(each).version: each for each in planned.gateways}
        preferred = {version: each for version, each in gateways.items() if version not in routers}
        routers.update(preferred)
        for address in map(ip_interface, planned.addresses):
            name = f"network{index}.{address.version}"
            router = preferred.get(address.version)
            networks.append(_static_network(name, link=index, address=address, router=router))
    return json.dumps({"links": links, "networks": networks, "services": services})


def _static_network(
    name: str, *, link: int, address: IPv4Interface | IPv6Interface, router: str | None
) -> dict[str, Any]:
    """Return a network with a fixed address."""
    any_address = _ANY[address.version]
    return {
        "id": name,
        "link": f"link{link}",
        "type": f"ipv{address.version}",
        "ip_address": str(address.ip),
        "netmask": str(address.netmask),
        "routes": [{"network": any_address, "netmask": any_address, "gateway": router}] if router else [],
    }
