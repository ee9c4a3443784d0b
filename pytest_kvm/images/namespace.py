"""Run build steps as root of their own namespaces.

If the user is root, a step gets mount and process namespaces only. An ordinary
user becomes root in a user namespace, too, whose other ids come from
/etc/subuid (subuid(5)), so that a root filesystem gets the right owners. In
both cases the mounts and processes of a step end with the step, however it ends.
"""

from __future__ import annotations

import os
import pwd
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from pytest_kvm.errors import HostError, MissingDependency
from pytest_kvm.host import command

_OWN = ("unshare", "--mount", "--pid", "--fork", "--kill-child")
_AS_ROOT_INSIDE = ("--user", "--map-root-user", "--map-auto")
_ENVIRONMENT = {"LC_ALL": "C.UTF-8", "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}


def run(
    argv: Sequence[str | Path],
    *,
    timeout: float,
    env: Mapping[str, str] | None = None,
    text: str | None = None,
    on_line: command.OnLine | None = None,
) -> command.Completed:
    """Run one program as root of fresh namespaces.

    Raises:
        HostCommandFailed: The program failed.
    """
    prefix = _OWN if os.geteuid() == 0 else (*_OWN, *_AS_ROOT_INSIDE)
    variables = {**_ENVIRONMENT, **(env or {})}
    return command.run([*prefix, "--", *argv], timeout=timeout, env=variables, input=text, on_line=on_line)


def remove_tree(path: Path) -> None:
    """Remove a file, a link or a folder, even if files in it belong to ids of the namespace."""
    if os.path.lexists(path):
        run(["rm", "-rf", "--one-file-system", "--", path], timeout=300)


def check() -> None:
    """Check that this user may make the namespaces that a build needs.

    Raises:
        MissingDependency: newuidmap(1) is absent.
        HostError: The user has no subordinate ids, or the kernel refuses.
    """
    if os.geteuid() == 0:
        return
    if shutil.which("newuidmap") is None:
        raise MissingDependency(
            "building an image as an ordinary user needs newuidmap",
            resolution="apt-get install uidmap, or build the image once as root",
        )
    user = pwd.getpwuid(os.geteuid()).pw_name
    for table in (Path("/etc/subuid"), Path("/etc/subgid")):
        if not _has_range(table, user):
            raise HostError(
                f"an ordinary user builds images with subordinate ids: {table} has no line for {user}",
                resolution=f"usermod --add-subuids 100000-165535 --add-subgids 100000-165535 {user}",
            )
    run(["true"], timeout=30)


def _has_range(table: Path, user: str) -> bool:
    if not table.exists():
        return False
    names = {user, str(os.geteuid())}
    return any(line.split(":")[0] in names for line in table.read_text().splitlines())
