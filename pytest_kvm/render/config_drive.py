"""OpenStack's ConfigDrive: the same guest in another layout.

Layout: https://docs.cloud-init.io/en/latest/reference/datasources/configdrive.html;
``network_data.json``: https://docs.openstack.org/nova/latest/user/metadata.html.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from pytest_kvm.render.cloud_config import Identity
from pytest_kvm.render.plan import NicPlan
from pytest_kvm.spec.control import CONTROL_ADDRESS, CONTROL_DNS, CONTROL_GATEWAY
from pytest_kvm.spec.guest import GuestSpec

_ANY = "0.0.0.0"  # noqa: S104 - a route's destination, nothing listens there


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
    """Return ``openstack/latest/network_data.json``."""
    control: dict[str, Any] = {
        "id": "control",
        "link": "link0",
        "type": "ipv4",
        "ip_address": CONTROL_ADDRESS,
        "netmask": "255.255.255.0",
        "routes": [],
    }
    services: list[dict[str, str]] = []
    if spec.internet:
        control["routes"] = [{"network": _ANY, "netmask": _ANY, "gateway": CONTROL_GATEWAY}]
        services.append({"type": "dns", "address": CONTROL_DNS})
    links = [{"id": "link0", "type": "phy", "ethernet_mac_address": control_mac}]
    networks = [control]
    for index, planned in enumerate(nics, start=1):
        links.append({"id": f"link{index}", "type": "phy", "ethernet_mac_address": planned.mac})
        if planned.nic.dhcp:
            networks.append({"id": f"network{index}", "link": f"link{index}", "type": "ipv4_dhcp"})
    return json.dumps({"links": links, "networks": networks, "services": services})
