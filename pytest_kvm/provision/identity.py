"""Makes what tells guests apart: UUIDs, host names, MAC addresses, machine ids, host keys."""

from __future__ import annotations

import re
import secrets
import uuid

from pytest_kvm.host.ssh_keys import KeyPair, new_key_pair
from pytest_kvm.render.cloud_config import Identity
from pytest_kvm.spec.guest import GuestSpec

_NOT_IN_HOSTNAMES = re.compile(r"[^a-zA-Z0-9-]+")
_LONGEST_LABEL = 63


def new_identity(hostname: str, *, key: KeyPair) -> tuple[str, Identity]:
    """Return a fresh UUID and the identity that goes with it.

    The instance-id is new for every guest, so that cloud-init runs its
    ``per-instance`` modules: they run once for each instance-id.
    """
    domain_uuid = str(uuid.uuid4())
    host_key = new_key_pair()
    return domain_uuid, Identity(
        instance_id=domain_uuid,
        hostname=hostname,
        authorized_key=key.public,
        host_private_key=host_key.private,
        host_public_key=host_key.public,
    )


def hostname_from(name: str) -> str:
    """Return a host name made of a guest's name ("web_1" → "web-1")."""
    return _NOT_IN_HOSTNAMES.sub("-", name).strip("-")[:_LONGEST_LABEL].strip("-") or "guest"


def new_mac() -> str:
    """Return a random MAC address in QEMU's own range (52:54:00, locally administered)."""
    return "52:54:00:" + ":".join(f"{octet:02x}" for octet in secrets.token_bytes(3))


def new_machine_id() -> str:
    """Return a random machine id (``machine-id(5)``)."""
    return uuid.uuid4().hex


def is_unique(spec: GuestSpec) -> bool:
    """Say whether each clone of a spec gets a ``machine-id`` and an SSH host key of its own.

    With ``identity="auto"``, clones get them if the guest has a card on a network
    that other guests can join.
    """
    if spec.identity == "auto":
        return any(nic.plugged for nic in spec.nics)
    return spec.identity == "unique"
