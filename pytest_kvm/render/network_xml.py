"""Renders the XML of a libvirt network: https://libvirt.org/formatnetwork.html."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pytest_kvm.spec.network import Network

_USUAL_MTU = 1500
_MODES = {"nat": "nat", "routed": "route"}


@dataclass(frozen=True, kw_only=True)
class NetworkPlan:
    """What the run chose for one network."""

    name: str
    uuid: str
    bridge: str
    """Name of the bridge that libvirt makes."""


def network_xml(network: Network, plan: NetworkPlan) -> str:
    """Return the XML of a transient network.

    libvirt answers no DHCP and no DNS on it: guests have fixed addresses there, and know
    each other's names, as on every segment.
    """
    element = ET.Element("network")
    ET.SubElement(element, "name").text = plan.name
    ET.SubElement(element, "uuid").text = plan.uuid
    spec = network.spec
    if spec.forward != "isolated":
        forward = ET.SubElement(element, "forward", mode=_MODES[spec.forward])
        if spec.forward == "nat" and network.subnet6 is not None:
            ET.SubElement(forward, "nat", ipv6="yes")
    # Without a spanning tree, which would keep a new port silent for some seconds.
    ET.SubElement(element, "bridge", name=plan.bridge, stp="off", delay="0")
    if spec.mtu != _USUAL_MTU:
        ET.SubElement(element, "mtu", size=str(spec.mtu))
    ET.SubElement(element, "dns", enable="no")
    for gateway, subnet in ((network.gateway, network.subnet), (network.gateway6, network.subnet6)):
        if gateway is not None and subnet is not None:
            family = {"family": "ipv6"} if gateway.version == 6 else {}
            ET.SubElement(element, "ip", {**family, "address": str(gateway), "prefix": str(subnet.prefixlen)})
    ET.indent(element)
    return ET.tostring(element, encoding="unicode") + "\n"
