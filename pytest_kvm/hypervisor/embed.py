"""Prepare the root folder of libvirt's embedded QEMU driver, which needs no daemon.

https://libvirt.org/drvqemu.html#embedded-driver. A process can use only one
root, and a root can be used by only one process: libvirt refuses a second.
"""

from __future__ import annotations

import os
import threading
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import parse_qs, quote, urlsplit

from pytest_kvm.errors import ConnectionFailed
from pytest_kvm.host.qemu_process import PidfileWatch
from pytest_kvm.hypervisor.capabilities import CapabilityStore
from pytest_kvm.hypervisor.libvirt_log import check_log_folder

_PIDFILES = ("run/qemu/*.pid", "lib/qemu/qmp-*/qmp.pid")
_LONGEST_SOCKET = "lib/qemu/domain-9999-aaaaaaaaaaaaaaaaaaaa/monitor.sock"
_SOCKET_PATH_MAX = 107

_WRITTEN_BY_US = "# Written by pytest-kvm for one run; gone with it.\n"
_CONFIG = """\
security_driver = "none"
namespaces = []
cgroup_controllers = []
dynamic_ownership = 0
remember_owner = 0
stdio_handler = "file"
"""
"""The driver's ``qemu.conf``. It switches off what the driver must not rely on:
profiles of a security module, mount namespaces, its own cgroup, virtlogd.
QEMU's seccomp sandbox stays on."""

_CONFIG_AS_ROOT = 'user = "root"\ngroup = "root"\n'
"""Added for root: else QEMU would run as ``libvirt-qemu``, which cannot enter folders of mode 0700."""


@dataclass(frozen=True, kw_only=True)
class EmbedRoot:
    """A root folder that is ready for libvirt's embedded driver."""

    path: Path
    watch: PidfileWatch
    """Collects the QEMU processes that libvirt starts below this root."""
    capabilities: CapabilityStore

    @property
    def uri(self) -> str:
        """The connection URI that names this root."""
        return f"qemu:///embed?root={quote(str(self.path))}"

    def pidfile(self, domain: str) -> str:
        """Return the path of the pidfile that libvirt writes for a domain's QEMU, relative to the root."""
        return f"run/qemu/{domain}.pid"

    def qemu_log(self, domain: str) -> Path:
        """Return the path of the log of a domain's QEMU."""
        return self.path / "log/qemu" / f"{domain}.log"


_lock = threading.Lock()
_roots: dict[int, EmbedRoot] = {}
"""Roots by process id: this process's, and in a forked child also the one of its parent."""


def is_embed(uri: str) -> bool:
    """Tell whether a URI asks for the embedded driver."""
    parts = urlsplit(uri)
    return parts.scheme == "qemu" and parts.path == "/embed"


def embed_root(uri: str, *, run_dir: Path, cache_dir: Path) -> EmbedRoot:
    """Prepare the root that a URI names, or else one in ``run_dir``; later calls return the same root.

    Raises:
        ConnectionFailed: This process has another root already, or had this one
            and it was removed; the path is too long for QEMU's sockets; or the
            root has a ``qemu.conf`` that pytest-kvm did not write.
    """
    check_log_folder()
    asked = parse_qs(urlsplit(uri).query).get("root")
    path = Path(asked[0]) if asked else run_dir / "v"
    with _lock:
        known = _roots.get(os.getpid())
        if known is not None:
            return _same_root(known, path)
        _check_length(path)
        _configure(path / "etc")
        root = EmbedRoot(
            path=path,
            watch=PidfileWatch(path, _PIDFILES),
            capabilities=CapabilityStore(folder=cache_dir / "libvirt", root=path),
        )
        _roots[os.getpid()] = root
        return root


def _same_root(known: EmbedRoot, path: Path) -> EmbedRoot:
    if known.path != path:
        raise ConnectionFailed(
            f"libvirt's embedded driver of this process works in {known.path} and cannot also work in {path}",
            resolution="one process has one run folder: start a new process for another run",
        )
    if not path.is_dir():
        raise ConnectionFailed(
            f"{path} was removed while libvirt's embedded driver still works in it",
            resolution="start a new process for another run",
        )
    return known


def _configure(folder: Path) -> None:
    """Write the driver's ``qemu.conf``; refuse to replace one that pytest-kvm did not write."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    config = folder / "qemu.conf"
    is_free = not os.path.lexists(config)
    is_own = config.is_file() and config.read_text(errors="replace").startswith(_WRITTEN_BY_US)
    if folder.is_symlink() or config.is_symlink() or not (is_free or is_own):
        raise ConnectionFailed(
            f"{config} was not written by pytest-kvm, and the embedded driver needs one of its own",
            resolution="name another root= in the connection's URI: a folder that is empty or not there yet",
        )
    as_root = _CONFIG_AS_ROOT if os.geteuid() == 0 else ""
    config.write_text(_WRITTEN_BY_US + _CONFIG + as_root)


def _check_length(path: Path) -> None:
    longest = len(os.fsencode(path / _LONGEST_SOCKET))
    if longest > _SOCKET_PATH_MAX:
        raise ConnectionFailed(
            f"the run folder is {longest - _SOCKET_PATH_MAX} bytes too long for QEMU's sockets: {path}",
            details=f"a socket's path has at most {_SOCKET_PATH_MAX} bytes, see unix(7)",
            resolution="choose a shorter run folder",
        )
