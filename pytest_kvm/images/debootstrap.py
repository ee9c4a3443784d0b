"""Make root filesystems from packages of the mirror that this host's apt uses; only user of mmdebstrap."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pytest_kvm.host import command
from pytest_kvm.images import namespace
from pytest_kvm.images.build_progress import BuildProgress, silent

_TIMEOUT = 1800.0
_KEYRINGS = (
    Path("/usr/share/keyrings/debian-archive-keyring.gpg"),
    Path("/usr/share/keyrings/debian-archive-keyring.pgp"),
)
_COUNT = re.compile(r"(\d+) (?:newly installed|to install)|Installing: (\d+)")
_STEP = re.compile(r"(?:Unpacking|Setting up) ")


def unpack(
    suite: str,
    folder: Path,
    *,
    packages: Sequence[str],
    options: Sequence[str] = (),
    temporary: Path,
    env: Mapping[str, str] | None = None,
    progress: BuildProgress = silent,
) -> None:
    """Make a root filesystem as a folder.

    Args:
        suite: Codename of the release.
        folder: The folder to make; it must be empty or not exist.
        packages: The packages to install, besides those of the variant.
        options: Further options of mmdebstrap(1): variant, hooks.
        temporary: Folder for temporary files, removed by the caller.
        env: Variables for the hooks.
        progress: Called with how far the installation is.

    Raises:
        HostCommandFailed: mmdebstrap failed; its last lines are in the details.
    """
    chosen = host_mirror()
    namespace.run(
        [
            "mmdebstrap",
            "--mode=unshare",
            "--format=directory",
            "--verbose",
            *(f"--keyring={path}" for path in _KEYRINGS if path.exists() and chosen is not None),
            *options,
            *([f"--include={','.join(packages)}"] if packages else []),
            suite,
            folder,
            *(chosen.sources(suite) if chosen else ()),
        ],
        timeout=_TIMEOUT,
        env={"TMPDIR": str(temporary), **proxy_environment(), **(env or {})},
        on_line=_installed_part(progress),
    )


def _installed_part(progress: BuildProgress) -> command.OnLine:
    """Return a reader of mmdebstrap's output that reports which part of the packages is installed.

    apt prints how many packages it installs. Then dpkg prints a line for each
    package when it unpacks it, and another one when it sets it up.
    """
    total = 0
    seen = 0

    def read(line: str) -> None:
        nonlocal total, seen
        if match := _COUNT.search(line):
            total += int(match[1] or match[2])
        elif _STEP.match(line):
            seen += 1
            progress("installing packages", min(seen / (2 * total), 1.0) if total else None)

    return read


_VARIABLE = "PYTEST_KVM_MIRROR"
_TARGETS = ["apt-get", "indextargets", "--format", "$(ORIGIN)|$(LABEL)|$(REPO_URI)", "Identifier: Packages"]
_PROXIES = {"http_proxy": "Acquire::http::Proxy", "https_proxy": "Acquire::https::Proxy"}


@dataclass(frozen=True, kw_only=True)
class Mirror:
    """Base addresses of Debian's archives."""

    main: str
    security: str | None = None
    """None: the mirror has no security archive that we know of."""

    def sources(self, suite: str) -> tuple[str, ...]:
        """Return the lines of sources.list for one release (sources.list(5))."""
        lines = [f"deb {self.main} {suite} main", f"deb {self.main} {suite}-updates main"]
        if self.security is not None:
            lines.append(f"deb {self.security} {suite}-security main")
        return tuple(lines)


def host_mirror() -> Mirror | None:
    """Return the mirror to build from; None leaves the choice to mmdebstrap.

    ``PYTEST_KVM_MIRROR`` (the main archive, a blank, the security archive)
    takes precedence over the mirror in the apt configuration of a Debian host.
    """
    if chosen := os.environ.get(_VARIABLE, "").split():
        return Mirror(main=chosen[0], security=chosen[1] if len(chosen) > 1 else None)
    if shutil.which("apt-get") is None:
        return None
    found: dict[str, str] = {}
    for line in command.run(_TARGETS, timeout=30).stdout.splitlines():
        origin, label, address = line.split("|", 2)
        if origin == "Debian" and address.startswith(("http:", "https:")):
            found.setdefault(label, address.rstrip("/"))
    if "Debian" not in found:
        return None
    return Mirror(main=found["Debian"], security=found.get("Debian-Security"))


def proxy_environment() -> dict[str, str]:
    """Return the proxy variables for apt in a chroot.

    Proxy variables in the environment of this process are inherited anyway. A
    proxy that only apt's configuration names would be lost without this,
    because apt in the chroot does not read the host's configuration.
    """
    if shutil.which("apt-config") is None:
        return {}
    proxies: dict[str, str] = {}
    for variable, option in _PROXIES.items():
        if variable not in os.environ:
            reply = command.run(["apt-config", "--format", "%v%n", "dump", option], timeout=30).stdout
            address = reply.partition("\n")[0].strip()
            if address and address != "DIRECT":
                proxies[variable] = address
    return proxies
