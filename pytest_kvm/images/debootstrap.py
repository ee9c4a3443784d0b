"""Root filesystems from Debian packages, by mmdebstrap (its sole user)."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from pytest_kvm.host import command
from pytest_kvm.images import mirror, namespace
from pytest_kvm.images.progress import Progress, silent

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
    progress: Progress = silent,
) -> None:
    """Make a root filesystem as a folder.

    Args:
        suite: Codename of the release.
        folder: Where; must not exist or be empty.
        packages: What to install beside the variant's own.
        options: Further options of mmdebstrap(1): variant, hooks.
        temporary: Folder for temporary files, removed by the caller.
        env: Variables for the hooks.
        progress: Told how far the installation is.

    Raises:
        HostCommandFailed: mmdebstrap failed; its last lines are in the details.
    """
    chosen = mirror.host_mirror()
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
        env={"TMPDIR": str(temporary), **mirror.proxy_environment(), **(env or {})},
        on_line=_installed_part(progress),
    )


def _installed_part(progress: Progress) -> command.OnLine:
    """Return a line reader that turns dpkg's lines into a part done.

    apt says how many packages it installs; dpkg then names each twice, when
    it unpacks and when it sets up.
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
