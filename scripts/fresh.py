"""Follow the README on a machine that has nothing yet: a minimal Debian in a folder of its own.

    python -m scripts.fresh [SUITE ...]    # trixie and bookworm, if none is named

mmdebstrap makes the root filesystem: what Debian requires, and make, git and
python3. It is entered by pivot_root(2) in namespaces that end with it, and
``make demo`` runs in a clone of HEAD: host packages, environment, image and
quickstart on a real guest. From this machine come its mirror, its proxies and
its certificates, and nothing else.

Only root can do this. Exit code 1: it failed, in the last of the lines printed.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

from pytest_kvm.errors import KvmError
from pytest_kvm.images import debootstrap, namespace
from scripts.folders import own_folder

ROOT = Path(__file__).resolve().parent.parent
SUITES = ("trixie", "bookworm")
PACKAGES = ("git", "make", "python3")
CERTIFICATES = Path("/etc/ssl/certs/ca-certificates.crt")
CERTIFICATES_THERE = Path("/root/certificates.crt")
"""Not where they are here: the package ca-certificates writes that file anew."""
PROXIES = ("http_proxy", "https_proxy", "ftp_proxy", "no_proxy")
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
ENTER = """\
set -eu
root=$1
shift
mount --bind "$root" "$root"
mount --rbind /sys "$root/sys"
mount --rbind /dev "$root/dev"
mount -t tmpfs -o mode=1777 tmpfs "$root/dev/shm"
mount -t proc proc "$root/proc"
cd "$root"
mkdir -p former
pivot_root . former
umount -l /former
cd /root/pytest-kvm
exec "$@"
"""
TIMEOUT = 3600.0


def main() -> int:
    """Try the releases one after the other."""
    parser = argparse.ArgumentParser(description="follow the README in a minimal Debian")
    parser.add_argument("suite", nargs="*", default=SUITES, help="codename of a release")
    for suite in parser.parse_args().suite:
        started = time.monotonic()
        try:
            with own_folder("pytest-kvm-fresh-") as folder:
                try_in(folder, suite)
        except KvmError as error:
            print(f"fresh: {suite}: {error}", file=sys.stderr)
            return 1
        print(f"fresh: {suite}: the README holds ({time.monotonic() - started:.0f} s)", flush=True)
    return 0


def try_in(folder: Path, suite: str) -> None:
    """Make a minimal root in a folder, run the demo in it, remove it."""
    root = folder / "root"
    (folder / "tmp").mkdir()
    print(f"fresh: {suite}: making a root with {', '.join(PACKAGES)}", flush=True)
    try:
        debootstrap.unpack(
            suite, root, packages=PACKAGES, options=["--variant=minbase"], temporary=folder / "tmp"
        )
        take_along(root)
        argv: list[str | Path] = [
            "unshare",
            "--ipc",
            "--uts",
            "sh",
            "-c",
            ENTER,
            "fresh",
            root,
            "env",
            "--ignore-environment",
            *(f"{name}={value}" for name, value in environment().items()),
            "make",
            "demo",
        ]
        namespace.run(argv, timeout=TIMEOUT, on_line=say)
    finally:
        namespace.remove_tree(root)


def take_along(root: Path) -> None:
    """Copy a clone of HEAD, and what this machine needs to reach registries."""
    argv = ["git", "clone", "--quiet", "--no-hardlinks", str(ROOT), str(root / "root/pytest-kvm")]
    subprocess.run(argv, check=True)
    if CERTIFICATES.exists():
        shutil.copyfile(CERTIFICATES, root / CERTIFICATES_THERE.relative_to("/"))
    shutil.copyfile("/etc/resolv.conf", root / "etc/resolv.conf")


def environment() -> dict[str, str]:
    """Return all variables of programs in there: of ours, they have the proxies and the certificates."""
    proxies = {name: value for name, value in os.environ.items() if name.lower() in PROXIES}
    names = ("CURL_CA_BUNDLE", "PIP_CERT", "REQUESTS_CA_BUNDLE", "SSL_CERT_FILE")
    certificates = dict.fromkeys(names if CERTIFICATES.exists() else (), str(CERTIFICATES_THERE))
    return {"HOME": "/root", "PATH": PATH, **proxies, **certificates}


def say(line: str) -> None:
    """Show a line at once."""
    print(line, flush=True)


if __name__ == "__main__":
    if os.geteuid() != 0:
        sys.exit("fresh: only root can enter another root filesystem")
    sys.exit(main())
