"""Forwards ports of the host's loopback address to the guest, through QEMU's user-mode network."""

from __future__ import annotations

import re
import threading
from types import TracebackType
from typing import Self

from pytest_kvm.errors import NetworkFailed
from pytest_kvm.hypervisor.protocol import Domain
from pytest_kvm.spec.nic import CONTROL_NETDEV

LOOPBACK = "127.0.0.1"

# A line of "info usernet" (libslirp's slirp_connection_info()):
#   TCP[HOST_FORWARD]  11       127.0.0.1 46297       10.0.2.15    22     0     0
_RULE = re.compile(
    rf"^\s*TCP\[HOST_FORWARD\]\s+\d+\s+{re.escape(LOOPBACK)}\s+(?P<host>\d+)\s+\S+\s+(?P<guest>\d+)\s",
    re.MULTILINE,
)

# The line of a connection that came in through a forward, with QEMU's file descriptor; in TIME_WAIT
# both sides have closed it:
#   TCP[ESTABLISHED]   15       10.0.2.2   54710       10.0.2.15    22     0     0
_CONNECTION = re.compile(
    r"^\s*TCP\[(?!HOST_FORWARD|TIME_WAIT)(?P<state>\w+)\]\s+(?P<file>\d+)"
    r"\s+\S+\s+(?P<from>\d+)\s+\S+\s+(?P<to>\d+)\s",
    re.MULTILINE,
)


class Forward:
    """A port on the host that leads to one of the guest; a context manager that closes it."""

    def __init__(self, forwards: Forwards, *, guest_port: int, port: int) -> None:
        self._forwards = forwards
        self.guest_port = guest_port
        """Port in the guest."""
        self.host = LOOPBACK
        """Address on the host."""
        self.port = port
        """Port on the host."""

    def close(self) -> None:
        """Stop forwarding; open connections stay open. A second call does nothing.

        Raises:
            HypervisorError: QEMU did not stop forwarding.
        """
        self._forwards.remove(self)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<Forward {self.host}:{self.port} to port {self.guest_port} of {self._forwards.name}>"


class Forwards:
    """A guest's forwarded ports."""

    def __init__(self, domain: Domain) -> None:
        self._domain = domain
        self._lock = threading.Lock()
        self._open: list[Forward] = []

    @property
    def name(self) -> str:
        """The domain's name."""
        return self._domain.name

    @property
    def open(self) -> tuple[Forward, ...]:
        """The forwards that have not been closed."""
        return tuple(self._open)

    def add(self, guest_port: int, *, host_port: int = 0) -> Forward:
        """Forward a TCP port of the host's loopback address to the guest.

        Args:
            guest_port: Port in the guest; nothing needs to listen there yet.
            host_port: Port on the host; 0: the kernel chooses a free one,
                without a moment in which somebody else could take it.

        Raises:
            NetworkFailed: The host's port is taken.
            HypervisorError: The monitor did not answer.
        """
        for port, least in ((guest_port, 1), (host_port, 0)):
            if not least <= port <= 65535:
                raise ValueError(f"{port} is not a TCP port")
        with self._lock:
            before = forwarded_ports(self._domain, guest_port)
            said = self._domain.hmp(f"hostfwd_add {CONTROL_NETDEV} tcp:{LOOPBACK}:{host_port}-:{guest_port}")
            added = forwarded_ports(self._domain, guest_port) - before
            if len(added) != 1:
                raise NetworkFailed(
                    f"{self.name}: port {guest_port} could not be forwarded from {LOOPBACK}:{host_port}",
                    details=said.strip(),
                    resolution="leave host_port out: the kernel then chooses a free one",
                )
            forward = Forward(self, guest_port=guest_port, port=added.pop())
            self._open.append(forward)
            return forward

    def remove(self, forward: Forward) -> None:
        """Close a forward; if the guest has ended, QEMU has done so already."""
        with self._lock:
            if forward not in self._open:
                return
            if self._domain.alive():
                said = self._domain.hmp(f"hostfwd_remove {CONTROL_NETDEV} tcp:{LOOPBACK}:{forward.port}")
                if forward.port in forwarded_ports(self._domain, forward.guest_port):
                    raise NetworkFailed(f"{self.name}: {forward!r} could not be closed", details=said.strip())
            self._open.remove(forward)

    def close(self) -> None:
        """Close all forwards."""
        for forward in self.open:
            forward.close()


def forwarded_ports(domain: Domain, guest_port: int) -> set[int]:
    """Return the ports of the host's loopback address that lead to a port of the guest.

    Raises:
        HypervisorError: The monitor did not answer.
    """
    rules = _RULE.finditer(domain.hmp("info usernet"))
    return {int(rule["host"]) for rule in rules if int(rule["guest"]) == guest_port}


def guest_connections(domain: Domain, guest_port: int) -> dict[int, str]:
    """Return the TCP connections of the user-mode network to a port of the guest.

    Returns:
        The state of each (``ESTABLISHED``), by QEMU's file descriptor of its other end.

    Raises:
        HypervisorError: The monitor did not answer.
    """
    found = _CONNECTION.finditer(domain.hmp("info usernet"))
    return {
        int(each["file"]): each["state"] for each in found if str(guest_port) in (each["from"], each["to"])
    }
