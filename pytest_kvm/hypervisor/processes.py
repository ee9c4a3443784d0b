"""The QEMU process of a domain that another process started."""

from __future__ import annotations

from contextlib import suppress

import psutil

from pytest_kvm.host.reaping import HostProcess


def find_qemu(uuid: str) -> HostProcess | None:
    """Return the QEMU that runs a domain, None if it is not on this machine.

    libvirt tells nobody the pid; it does put ``-uuid`` on the command line.
    """
    for process in psutil.process_iter(["cmdline"]):
        arguments: list[str] = process.info["cmdline"] or []
        if uuid in arguments and arguments[arguments.index(uuid) - 1] == "-uuid":
            with suppress(ProcessLookupError, psutil.NoSuchProcess):
                return HostProcess(process.pid)
    return None
