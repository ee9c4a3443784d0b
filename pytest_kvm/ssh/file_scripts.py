"""Returns the POSIX shell scripts that run in the guest when files are copied."""

from __future__ import annotations

import posixpath
from dataclasses import dataclass
from shlex import quote

from pytest_kvm.ssh.archive import FileOwner

_KERNEL_FOLDERS = ("/proc/", "/sys/", "/dev/")
"""Folders whose files are interfaces of the kernel: they are written to and not replaced."""


@dataclass(frozen=True, kw_only=True)
class Target:
    """The path that a copied file or folder gets in the guest.

    A path that ends with a slash is the folder to copy into; the copy keeps its name.
    """

    path: str
    name: str
    """Name of the file or folder on the host."""
    token: str
    """Random part of the temporary name, so that two writers of one path do not disturb each other."""

    @property
    def final(self) -> str:
        """The path of the copy."""
        path = posixpath.join(self.path, self.name) if self.path.endswith("/") else self.path
        return plain(path)

    def assignments(self) -> str:
        """Return lines that set ``t`` (path, links followed), ``d`` (its folder), ``n`` (temporary path)."""
        return f"""t={quote(self.final)}
if [ -L "$t" ]; then t=$(readlink -f -- "$t") || exit; fi
d=${{t%/*}}/
n=$d.{self.token}.tmp
[ -d "$d" ] || mkdir -p -- "$d" || exit"""


def plain(path: str) -> str:
    """Return a path that has a folder in it, so that no program takes it for an option.

    Raises:
        ValueError: The path is empty or holds a NUL byte.
    """
    if not path or "\0" in path:
        raise ValueError(f"{path!r} is no path in a guest")
    # Only slashes at the end are removed: "a/../b" is not "b" if a is a link.
    path = path.rstrip("/") or "/"
    return path if path.startswith("/") else f"./{path}"


def file_in(target: Target, *, size: int, mode: int, owner: str | None) -> str:
    """Return a script that writes ``size`` bytes of its input to a file, whole or not at all.

    A file that is replaced keeps its owner, unless an owner is given; a link is followed.
    """
    if target.final.startswith(_KERNEL_FOLDERS):
        return f"cat >{quote(target.final)}"
    own = (
        f'chown -- {quote(owner)} "$n"'
        if owner
        else '{ [ ! -e "$t" ] || { [ -O "$t" ] && [ -G "$t" ]; } || chown "$(stat -c %u:%g -- "$t")" "$n"; }'
    )
    # The umask gives modes without x bits: starting chmod takes a guest under TCG a while.
    umask, chmod = (0o077, f' && chmod {mode:o} -- "$n"') if mode & ~0o666 else (0o666 & ~mode, "")
    return f"""{target.assignments()}
if [ -d "$t" ]; then echo "$t: Is a directory" >&2; exit 1; fi
umask {umask:03o}
cat >"$n" && [ "$(wc -c <"$n")" -eq {size} ] && {own}{chmod} && mv -f -- "$n" "$t" && exit
c=$?
rm -f -- "$n"
exit $c"""


def file_append(target: Target, *, mode: int, owner: str | None) -> str:
    """Return a script that appends its input to a file; a file that it makes has ``mode``."""
    own = f'chown -- {quote(owner)} "$t"' if owner else ":"
    return f"""{target.assignments()}
[ -e "$t" ] || {{ umask 077 && : >"$t" && chmod {mode:o} -- "$t"; }} || exit
cat >>"$t" && {own}"""


def tree_in(target: Target, *, mode: int, owner: FileOwner | None) -> str:
    """Return a script that unpacks a tar stream from its input.

    A new folder appears whole or not at all; a folder that exists is merged with the stream.
    """
    keep = "--same-owner" if owner else "--no-same-owner"
    own = f'chown -- {quote(f"{owner.user}:{owner.group}")} "$n"' if owner else ":"
    return f"""{target.assignments()}
if [ -d "$t" ]; then exec tar -x -p {keep} -f - -C "$t"; fi
umask 077
mkdir -- "$n" && tar -x -p {keep} -f - -C "$n" && {own} && chmod {mode:o} -- "$n" && mv -- "$n" "$t" && exit
c=$?
rm -rf -- "$n"
exit $c"""


def out(path: str) -> str:
    """Return a script that prints "file MODE" or "tree MODE" on a line, then a file's bytes or a tar stream.

    One script does both, because each command costs a guest under TCG tenths of a second.
    """
    return f"""t={quote(plain(path))}
m=$(stat -L -c %a -- "$t") || exit
if [ -d "$t" ]; then echo "tree $m"; exec tar -c -f - -C "$t" .; fi
echo "file $m"
exec cat -- "$t\""""
