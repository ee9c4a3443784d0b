"""Translate libvirt's errors into the plugin's own: no ``libvirtError`` leaves this package.

What the codes mean: https://libvirt.org/html/libvirt-virterror.html.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import libvirt

from pytest_kvm.errors import (
    AgentError,
    ConnectionFailed,
    DomainFailed,
    HypervisorError,
    KvmError,
    NetworkFailed,
    SnapshotFailed,
    StateDamaged,
)
from pytest_kvm.hypervisor.qemu_log import refuses_state


@dataclass(frozen=True, kw_only=True)
class Meaning:
    """What one libvirt error code means to a user of the plugin."""

    error: type[KvmError] | None
    """The plugin's error class; None: the class that the caller of :func:`translated` gives."""
    resolution: str


_BAD_XML = Meaning(
    error=DomainFailed, resolution="if the spec has an `xml` hook, look there; else report this as a bug"
)
_ENDED = Meaning(error=DomainFailed, resolution="the guest has ended; its end reason and console log say why")
_LOST = Meaning(error=ConnectionFailed, resolution="see whether libvirt's daemon runs on that host")
_LOGIN = Meaning(
    error=ConnectionFailed, resolution="check the account's rights on that host (group libvirt, polkit)"
)
_SILENT_AGENT = Meaning(
    error=AgentError, resolution="see that qemu-guest-agent is installed and running in the guest"
)
_UNSUPPORTED = Meaning(
    error=HypervisorError, resolution="use qemu:///embed, which supports all that the plugin does"
)
_NO_HINT = Meaning(error=None, resolution="")

MEANINGS: Mapping[int, Meaning] = {
    libvirt.VIR_ERR_XML_ERROR: _BAD_XML,
    libvirt.VIR_ERR_XML_DETAIL: _BAD_XML,
    libvirt.VIR_ERR_XML_INVALID_SCHEMA: _BAD_XML,
    libvirt.VIR_ERR_OS_TYPE: _BAD_XML,
    libvirt.VIR_ERR_CONFIG_UNSUPPORTED: Meaning(
        error=DomainFailed, resolution="leave that field out of the spec, or use a newer QEMU and libvirt"
    ),
    libvirt.VIR_ERR_NO_DOMAIN: _ENDED,
    libvirt.VIR_ERR_OPERATION_INVALID: _ENDED,
    libvirt.VIR_ERR_DOM_EXIST: Meaning(error=DomainFailed, resolution="give the guests different names"),
    libvirt.VIR_ERR_NO_DOMAIN_SNAPSHOT: Meaning(error=SnapshotFailed, resolution="take the snapshot first"),
    libvirt.VIR_ERR_SNAPSHOT_REVERT_RISKY: Meaning(
        error=SnapshotFailed, resolution="the snapshot belongs to another configuration; take a new one"
    ),
    libvirt.VIR_ERR_NO_NETWORK: Meaning(
        error=NetworkFailed, resolution="name a network that `virsh net-list` shows as active"
    ),
    libvirt.VIR_ERR_NETWORK_EXIST: Meaning(
        error=NetworkFailed, resolution="choose another name for the network"
    ),
    libvirt.VIR_ERR_AGENT_UNRESPONSIVE: _SILENT_AGENT,
    libvirt.VIR_ERR_AGENT_UNSYNCED: _SILENT_AGENT,
    libvirt.VIR_ERR_NO_CONNECT: _LOST,
    libvirt.VIR_ERR_INVALID_CONN: _LOST,
    libvirt.VIR_ERR_RPC: _LOST,
    libvirt.VIR_ERR_AUTH_FAILED: _LOGIN,
    libvirt.VIR_ERR_AUTH_CANCELLED: _LOGIN,
    libvirt.VIR_ERR_AUTH_UNAVAILABLE: _LOGIN,
    libvirt.VIR_ERR_ACCESS_DENIED: _LOGIN,
    libvirt.VIR_ERR_NO_MEMORY: Meaning(error=None, resolution="run fewer guests at once, or smaller ones"),
    libvirt.VIR_ERR_RESOURCE_BUSY: Meaning(
        error=None, resolution="wait until the other user has let go, or end it"
    ),
    libvirt.VIR_ERR_OPERATION_TIMEOUT: Meaning(
        error=None, resolution="another call on this domain hangs; see whether its QEMU still answers"
    ),
    libvirt.VIR_ERR_NO_SUPPORT: _UNSUPPORTED,
    libvirt.VIR_ERR_OPERATION_UNSUPPORTED: _UNSUPPORTED,
    libvirt.VIR_ERR_ARGUMENT_UNSUPPORTED: _UNSUPPORTED,
}
"""All error codes that say something about the cause. ``INTERNAL_ERROR``,
``OPERATION_FAILED``, ``SYSTEM_ERROR`` and the like only say that the operation
failed: for these only the error's text helps."""

_NETWORK_CAUSES: Mapping[str, str] = {
    r"Check the host setup: interface .* accept_ra": (
        "say subnet6=None, or have the host set accept_ra=2 for that interface"
    ),
    r"Network is already in use by interface": "choose another subnet, or let the run choose one",
    r"<vlan> element specified for network": (
        'say virtualport="openvswitch"; VLANs of a Linux bridge need libvirt 11.0 or later'
    ),
    r"Cannot get interface MTU on '.*': No such device": (
        "the host has no such device: make the bridge first, or correct its name"
    ),
    r"Unable to add bridge \S+ port \S+: Operation not supported": (
        'it is no bridge of Linux; if it is one of Open vSwitch, say virtualport="openvswitch"'
    ),
    r"Unable to add port \S+ to OVS bridge": (
        "see that Open vSwitch runs there, and has this bridge (`ovs-vsctl list-br`)"
    ),
    r"Child process \(\S*tc .*(qdisc kind is unknown|TC classifier not found|load TC action module)": (
        "load the kernel modules on libvirt's host that NetworkSpec.inbound needs (sch_htb, sch_sfq, cls_fw) "
        "and outbound (sch_ingress, cls_u32, act_police); or leave the fields out, and use rate() in tests"
    ),
    r"Cannot find 'tc' in path": "install the package that has tc(8), iproute2, on libvirt's host",
}
"""Begins of errors that say that a network of the host, or a card on it, cannot be as it is
wanted, each with what to do: no error code tells."""
_KIND = r"(internal error: |unsupported configuration: )?"


@contextmanager
def translated(
    doing: str,
    *,
    error: type[KvmError] = HypervisorError,
    details: Callable[[], str] = lambda: "",
) -> Generator[None]:
    """Turn a ``libvirtError`` of the block into one of ours.

    Args:
        doing: What is tried, as in "libvirt could not …".
        error: The class for error codes without a class in :data:`MEANINGS`.
        details: Called on failure; returns further details for the error (the end of a log).

    Raises:
        KvmError: Of the class that :data:`MEANINGS` gives, else of ``error``.
    """
    try:
        yield
    except libvirt.libvirtError as failure:
        raise from_libvirt(failure, doing=doing, error=error, details=details()) from None


def from_libvirt(
    failure: libvirt.libvirtError, *, doing: str, error: type[KvmError] = HypervisorError, details: str = ""
) -> KvmError:
    """Return the plugin's error for a ``libvirtError``."""
    code: int = failure.get_error_code() or libvirt.VIR_ERR_INTERNAL_ERROR
    meaning = MEANINGS.get(code, _NO_HINT)
    said = failure.get_error_message() or str(failure)
    brief, _, rest = said.strip().partition("\n")
    kind, resolution = meaning.error or error, meaning.resolution
    if kind is DomainFailed and refuses_state(f"{said}\n{details}"):
        kind = StateDamaged
    elif kind in (DomainFailed, NetworkFailed) and (to_do := _network_resolution(said)):
        kind, resolution = NetworkFailed, to_do
    return kind(
        f"libvirt could not {doing}: {brief}",
        details="\n".join(part for part in (rest.strip(), details) if part),
        resolution=resolution,
    )


def _network_resolution(said: str) -> str:
    """Return what to do about what the host's network lacks; "" if the error is about something else."""
    found = (to_do for cause, to_do in _NETWORK_CAUSES.items() if re.match(_KIND + cause, said, re.DOTALL))
    return next(found, "")
