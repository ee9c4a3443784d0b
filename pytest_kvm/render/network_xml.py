"""Renders the XML of a libvirt network: https://libvirt.org/formatnetwork.html."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from pytest_kvm.spec.network import Network, NetworkSpec

_USUAL_MTU = 1500
_MODES = {"nat": "nat", "routed": "route"}


@dataclass(frozen=True, kw_only=True)
class NetworkPlan:
    """What the run chose for one network."""

    name: str
    uuid: str
    bridge: str
    """Name of the bridge that libvirt makes, unless the spec names one of the host."""


def network_xml(network: Network, plan: NetworkPlan) -> str:
    """Return the XML of a transient network.

    libvirt answers no DHCP and no DNS on it: guests have fixed addresses there, and know
    each other's names, as on every segment.
    """
    element = ET.Element("network")
    ET.SubElement(element, "name").text = plan.name
    ET.SubElement(element, "uuid").text = plan.uuid
    if network.spec.bridge is not None:
        _bridge_of_host(element, network.spec, bridge=network.spec.bridge)
    else:
        _own_bridge(element, network, plan)
    _bandwidth(element, network.spec)
    ET.indent(element)
    return ET.tostring(element, encoding="unicode") + "\n"


def _bridge_of_host(element: ET.Element, spec: NetworkSpec, *, bridge: str) -> None:
    ET.SubElement(element, "forward", mode="bridge")
    ET.SubElement(element, "bridge", name=bridge)
    if spec.virtualport is not None:
        ET.SubElement(element, "virtualport", type=spec.virtualport)
    if spec.vlan is None and not spec.trunk:
        return
    vlans = ET.SubElement(element, "vlan", {"trunk": "yes"} if spec.trunk else {})
    if spec.vlan is not None:
        untagged = {"nativeMode": "untagged"} if spec.trunk else {}
        ET.SubElement(vlans, "tag", {"id": str(spec.vlan), **untagged})
    for vlan in spec.trunk:
        ET.SubElement(vlans, "tag", id=str(vlan))


def _own_bridge(element: ET.Element, network: Network, plan: NetworkPlan) -> None:
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


def _bandwidth(element: ET.Element, spec: NetworkSpec) -> None:
    """Limit each card.

    A limit of the network itself would hold for frames between it and the host only, and
    libvirt refuses one where the bridge is not its own.
    """
    ways: tuple[Literal["inbound", "outbound"], ...] = ("inbound", "outbound")
    limits = {way: spec.kilobytes_per_second(way) for way in ways}
    if any(limits.values()):
        group = ET.SubElement(element, "portgroup", name="guests", default="yes")
        bandwidth = ET.SubElement(group, "bandwidth")
        for way, average in limits.items():
            if average is not None:
                ET.SubElement(bandwidth, way, average=str(average))
