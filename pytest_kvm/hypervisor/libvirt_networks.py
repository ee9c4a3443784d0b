"""Makes and removes networks of a libvirt connection.

As a program it removes the network of a run that was killed (:mod:`pytest_kvm.host.undo_notes`)::

    python -m pytest_kvm.hypervisor.libvirt_networks URI UUID
"""

from __future__ import annotations

import sys
from collections.abc import Generator, Sequence
from contextlib import contextmanager, suppress

import libvirt

from pytest_kvm.errors import ConnectionFailed, KvmError, NetworkFailed, WaitTimeout
from pytest_kvm.hypervisor.libvirt_connection import open_connection
from pytest_kvm.hypervisor.libvirt_errors import from_libvirt
from pytest_kvm.waiting import NotYet, wait_until

_MADE_WITHIN = 3.0
"""Seconds in which libvirt may still finish a network whose run was killed while it was made."""
_LOOK_EVERY = 0.1


def create(connection: libvirt.virConnect, xml: str) -> None:
    """Make a transient network.

    Raises:
        ConnectionFailed: The daemon does not answer.
        NetworkFailed: libvirt refused.
    """
    with _translated("make a network", details=xml):
        connection.networkCreateXML(xml)


def remove(connection: libvirt.virConnect, uuid: str) -> bool:
    """Remove a network with its bridge and its firewall rules; return False if there is none.

    Raises:
        NetworkFailed: libvirt refused.
    """
    with _translated(f"remove the network {uuid}"):
        try:
            connection.networkLookupByUUIDString(uuid).destroy()
        except libvirt.libvirtError as failure:
            if failure.get_error_code() != libvirt.VIR_ERR_NO_NETWORK:
                raise
            return False
    return True


@contextmanager
def _translated(doing: str, *, details: str = "") -> Generator[None]:
    """Turn a ``libvirtError`` into a NetworkFailed, also those whose codes mean a domain elsewhere."""
    try:
        yield
    except libvirt.libvirtError as failure:
        told = from_libvirt(failure, doing=doing, error=NetworkFailed, details=details)
        if isinstance(told, (ConnectionFailed, NetworkFailed)):
            raise told from None
        raise NetworkFailed(told.brief, details=told.details) from None


def main(arguments: Sequence[str]) -> int:
    """Remove a network; wait for one that libvirt may still be making.

    Args:
        arguments: URI of the connection, and the network's UUID.
    """
    uri, uuid = arguments

    def look() -> None:
        if not remove(connection, uuid):
            raise NotYet("there is none")

    try:
        connection = open_connection(uri).get()
        with suppress(WaitTimeout):
            wait_until(look, describe="the network", timeout=_MADE_WITHIN, every=_LOOK_EVERY)
    except KvmError as failure:
        sys.exit(failure.brief)
    connection.close()
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
