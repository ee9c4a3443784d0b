"""Where Debian's packages come from: what this host's apt is set up to use."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass

from pytest_kvm.host import command

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
    goes before what apt is set up to use on a Debian host.
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

    Those of our own environment are inherited anyway; a proxy that only apt's
    configuration names would be lost, because the chroot does not read it.
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
