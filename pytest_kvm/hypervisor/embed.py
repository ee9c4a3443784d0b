"""The embedded QEMU driver: libvirt without a daemon, below one root folder.

https://libvirt.org/drvqemu.html#embedded-driver. One process has one root and
one root has one process: libvirt refuses a second of either.
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
"""What the driver must not expect: a security module's profiles, mount
namespaces, a cgroup of its own, virtlogd. QEMU's seccomp sandbox stays on."""

_CONFIG_AS_ROOT = 'user = "root"\ngroup = "root"\n'
"""As root QEMU would become ``libvirt-qemu`` and lose sight of 0700 folders."""


@dataclass(frozen=True, kw_only=True)
class EmbedRoot:
    """A prepared root folder."""

    path: Path
    watch: PidfileWatch
    """Collects the QEMU processes that libvirt starts below this root."""
    capabilities: CapabilityStore

    @property
    def uri(self) -> str:
        """The connection URI that names this root."""
        return f"qemu:///embed?root={quote(str(self.path))}"

    def pidfile(self, domain: str) -> str:
        """Return where libvirt notes the pid of a domain's QEMU, below the root."""
        return f"run/qemu/{domain}.pid"

    def qemu_log(self, domain: str) -> Path:
        """Return where a domain's QEMU writes what it has to say."""
        return self.path / "log/qemu" / f"{domain}.log"


_lock = threading.Lock()
_roots: dict[int, EmbedRoot] = {}
"""The root of each process id: of this one, and of the one it was forked from."""


def is_embed(uri: str) -> bool:
    """Tell whether a URI asks for the embedded driver."""
    parts = urlsplit(uri)
    return parts.scheme == "qemu" and parts.path == "/embed"


def embed_root(uri: str, *, run_dir: Path, cache_dir: Path) -> EmbedRoot:
    """Prepare the root that a URI names, or ``run_dir``'s own; once a process.

    Raises:
        ConnectionFailed: This process has another root already, the path is
            too long for QEMU's sockets, or there is a ``qemu.conf`` of somebody else.
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
    """Write the driver's configuration, unless that would replace a file that is not our own."""
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
