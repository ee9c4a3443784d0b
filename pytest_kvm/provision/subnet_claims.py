"""Keeps segments and runs on one bridge of the host from having the same addresses.

libvirt sees to that for the bridges that it makes itself, by the host's routes. On a bridge that is
there already each run locks names: those of the bridge, the VLAN and the subnet.
"""

from __future__ import annotations

from contextlib import ExitStack
from ipaddress import ip_network
from typing import TYPE_CHECKING, Literal

from pytest_kvm.errors import NetworkFailed
from pytest_kvm.host.locks import locked_names, try_name

if TYPE_CHECKING:
    from pytest_kvm.spec.network import Network
    from pytest_kvm.spec.subnets import Subnet

SubnetField = Literal["subnet", "subnet6"]


class SubnetTaken(NetworkFailed):
    """A network of the host has some of a segment's addresses already; another subnet may do."""

    def __init__(self, brief: str, *, details: str = "", resolution: str = "", field: SubnetField) -> None:
        super().__init__(brief, details=details, resolution=resolution)
        self.field = field


def claim_subnets(network: Network) -> ExitStack:
    """Claim a segment's subnets on the bridge of the host that its guests are on, if it is one.

    Returns:
        What gives them back when it is closed.

    Raises:
        SubnetTaken: Another segment or run has some of the addresses.
    """
    with ExitStack() as claims:
        if network.spec.bridge is not None:
            there = f"pytest-kvm/{network.spec.bridge}/{network.spec.vlan or 0}/"
            if network.subnet is not None:
                _claim(network.subnet, network, claims, there=there, field="subnet")
            if network.subnet6 is not None:
                _claim(network.subnet6, network, claims, there=there, field="subnet6")
        return claims.pop_all()


def _claim(subnet: Subnet, network: Network, claims: ExitStack, *, there: str, field: SubnetField) -> None:
    claim = try_name(f"{there}{subnet}")
    if claim is not None:
        claims.enter_context(claim)
    # Only after its own claim: of two that come at the same time at least one sees the other.
    names = locked_names(there)
    if claim is not None:
        names.remove(str(subnet))
    taken = next((name for name in names if _overlaps(name, subnet)), str(subnet) if claim is None else "")
    if taken:
        raise SubnetTaken(
            f"{network.name}: {taken} is already in use by another segment or run on {network.spec.bridge}",
            resolution=f"leave NetworkSpec.{field} out, so that each run chooses its own; or choose another",
            field=field,
        )


def _overlaps(name: str, subnet: Subnet) -> bool:
    """Say whether a locked name is a subnet that has some addresses of this one."""
    try:
        other = ip_network(name)
    except ValueError:
        return False
    return other.version == subnet.version and other.overlaps(subnet)
