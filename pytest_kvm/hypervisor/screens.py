"""A guest's screen as bytes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pytest_kvm.errors import DomainFailed
from pytest_kvm.hypervisor.errors import translated

if TYPE_CHECKING:
    import libvirt

_MOST_BYTES = 64 * 1024 * 1024
"""Four times a 24 bit picture of 2560 by 1600; the guest chooses the size."""


def screenshot(connection: libvirt.virConnect, domain: libvirt.virDomain) -> bytes:
    """Return the first screen as PNG or PPM, whichever QEMU and libvirt give.

    Raises:
        DomainFailed: There is no screen, or the picture is absurdly large.
    """
    name: str = domain.name()
    chunks: list[bytes] = []
    with translated(f"take a screenshot of {name}", error=DomainFailed):
        stream = connection.newStream(0)
        domain.screenshot(stream, 0, 0)
        received = 0
        while chunk := stream.recv(256 * 1024):
            received += len(chunk)
            if received > _MOST_BYTES:
                stream.abort()
                raise DomainFailed(
                    f"the screenshot of {name} is larger than {_MOST_BYTES} bytes",
                    resolution="set a smaller screen in the guest",
                )
            chunks.append(chunk)
        stream.finish()
    return b"".join(chunks)
