"""Open the hypervisor of a connection URI; libvirt is loaded by the first call, not by the import."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from pytest_kvm.errors import MissingDependency
from pytest_kvm.host.install_hints import install_hint
from pytest_kvm.hypervisor.libvirt_log import logging_to

if TYPE_CHECKING:
    from pytest_kvm.hypervisor.protocol import Hypervisor


def open_hypervisor(uri: str, *, run_dir: Path, cache_dir: Path) -> Hypervisor:
    """Open a connection to libvirt.

    Args:
        uri: ``qemu:///embed`` (libvirt inside this process, in a folder below
            ``run_dir``), ``qemu:///embed?root=…``, ``qemu:///session``,
            ``qemu:///system``, ``qemu+ssh://…/system`` or ``test:///default``
            (https://libvirt.org/uri.html).
        run_dir: This run's own folder. Its path has to be short, because QEMU's sockets are below it.
        cache_dir: The cache folder; QEMU's capabilities are stored below it for later runs.

    Raises:
        MissingDependency: libvirt, its Python module, its QEMU driver or QEMU
            is not installed. For the embedded driver also: QEMU or libvirt is too old.
        ConnectionFailed: The connection was refused, or this process has
            another embedded driver open already.
        KvmError: The embedded driver could not be opened the first time, and why.
    """
    try:
        with logging_to(run_dir / "libvirt.log"):
            # The plugin must load without libvirt.
            from pytest_kvm.hypervisor.libvirt_hypervisor import connect  # noqa: PLC0415 - see above
    except ImportError as failure:
        if not (failure.name or "").startswith("libvirt") and "libvirt" not in str(failure):
            raise
        raise MissingDependency(
            f"libvirt's Python module cannot be loaded: {failure}",
            resolution=f"pip install libvirt-python, after {install_hint('libvirt-build')}",
        ) from None
    return connect(uri, run_dir=run_dir, cache_dir=cache_dir)
