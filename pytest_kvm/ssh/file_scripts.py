"""The POSIX shell scripts that are the guest's half of moving files. Text in, text out."""

from __future__ import annotations

import posixpath
from dataclasses import dataclass
from shlex import quote

from pytest_kvm.ssh.archive import Owner

_KERNEL_FOLDERS = ("/proc/", "/sys/", "/dev/")
"""Where a file is a door to the kernel and cannot be replaced by another."""


@dataclass(frozen=True, kw_only=True)
class Target:
    """Where something goes in the guest.

    A path that ends with a slash means: into that folder, under its own name.
    """

    path: str
    name: str
    """Its own name."""
    token: str
    """Random; keeps two writers of one path apart until each renames its own."""

    @property
    def final(self) -> str:
        """The path that will be."""
        path = posixpath.join(self.path, self.name) if self.path.endswith("/") else self.path
        return plain(path)

    def assignments(self) -> str:
        """Return the lines that set ``t`` (links followed), ``d`` (its folder), ``n`` (new in it)."""
        return f"""t={quote(self.final)}
if [ -L "$t" ]; then t=$(readlink -f -- "$t") || exit; fi
d=${{t%/*}}/
n=$d.{self.token}.tmp
[ -d "$d" ] || mkdir -p -- "$d" || exit"""


def plain(path: str) -> str:
    """Return a path that no program takes for an option and that has a folder.

    Raises:
        ValueError: It is empty or holds a NUL byte.
    """
    if not path or "\0" in path:
        raise ValueError(f"{path!r} is no path in a guest")
    # Only the end is tidied: "a/../b" is not "b" where a is a link.
    path = path.rstrip("/") or "/"
    return path if path.startswith("/") else f"./{path}"


def file_in(target: Target, *, size: int, mode: int, owner: str | None) -> str:
    """Return a script that writes ``size`` bytes of its input to a file, whole or not at all.

    A file that is replaced keeps its owner unless one is given; a link is followed.
    """
    if target.final.startswith(_KERNEL_FOLDERS):
        return f"cat >{quote(target.final)}"
    own = (
        f'chown -- {quote(owner)} "$n"'
        if owner
        else '{ [ ! -e "$t" ] || { [ -O "$t" ] && [ -G "$t" ]; } || chown "$(stat -c %u:%g -- "$t")" "$n"; }'
    )
    # A plain mode comes from the umask: to start chmod takes a translated guest a while.
    umask, chmod = (0o077, f' && chmod {mode:o} -- "$n"') if mode & ~0o666 else (0o666 & ~mode, "")
    return f"""{target.assignments()}
if [ -d "$t" ]; then echo "$t: Is a directory" >&2; exit 1; fi
umask {umask:03o}
cat >"$n" && [ "$(wc -c <"$n")" -eq {size} ] && {own}{chmod} && mv -f -- "$n" "$t" && exit
c=$?
rm -f -- "$n"
exit $c"""


def file_append(target: Target, *, mode: int, owner: str | None) -> str:
    """Return a script that appends its input to a file; ``mode`` is that of a new one."""
    own = f'chown -- {quote(owner)} "$t"' if owner else ":"
    return f"""{target.assignments()}
[ -e "$t" ] || {{ umask 077 && : >"$t" && chmod {mode:o} -- "$t"; }} || exit
cat >>"$t" && {own}"""


def tree_in(target: Target, *, mode: int, owner: Owner | None) -> str:
    """Return a script that unpacks a tar stream from its input.

    A new folder appears whole or not at all; what exists is written into.
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

    One script for both, because each command costs a translated guest tenths of a second.
    """
    return f"""t={quote(plain(path))}
m=$(stat -L -c %a -- "$t") || exit
if [ -d "$t" ]; then echo "tree $m"; exec tar -c -f - -C "$t" .; fi
echo "file $m"
exec cat -- "$t\""""
