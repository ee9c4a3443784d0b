"""Whether a guest whose connection was lost is going down, or runs on."""

from __future__ import annotations

import logging
import socket
import time
from collections.abc import Callable

from pytest_kvm.errors import WaitTimeout
from pytest_kvm.handles.machine import Access
from pytest_kvm.waiting import NotYet, wait_until

_A_MOMENT = 1.0
"""Seconds from a lost connection until an sshd that answers says that the guest runs on."""
_GOES_DOWN_WITHIN = 15.0
"""Seconds from a lost connection to the end of a guest that powers off."""
_BANNER_WITHIN = 1.0


def goes_down(access: Access, *, is_alive: Callable[[], bool], log: logging.Logger) -> bool:
    """Wait until a guest has ended, or has an sshd that answers; say whether it has ended.

    QEMU's end closes a connection a moment before libvirt tells of it; a guest
    that powers off closes it seconds before its end, and its sshd with it.
    """
    lost_at = time.monotonic()

    def has_ended() -> bool:
        if not is_alive():
            return True
        if time.monotonic() - lost_at > _A_MOMENT and _answers(access):
            return False
        raise NotYet("it runs, and its sshd does not answer")

    try:
        return wait_until(
            has_ended, describe="the guest's end", timeout=_GOES_DOWN_WITHIN, every=0.05, log=log
        )
    except WaitTimeout:
        return False


def _answers(access: Access) -> bool:
    """Say whether sshd does; a forwarded port accepts whether or not one is there."""
    try:
        with socket.create_connection((access.host, access.port), timeout=_BANNER_WITHIN) as probe:
            return probe.recv(4) == b"SSH-"
    except OSError:
        return False
