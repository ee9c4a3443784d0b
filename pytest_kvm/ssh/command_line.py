"""From what the caller asked for to the one line that sshd hands to a shell.

SSH has no argument list: ``sshd(8)`` runs the login shell with ``-c`` and one
string. Everything here is text in, text out, for any POSIX login shell.
"""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Mapping, Sequence

Command = str | Sequence[str]
"""A list is quoted word by word; a string is for the guest's shell as it is."""

GROUP_MARK = "pytest-kvm-group"
"""First word of the line that tells the command's process group, on both streams before its output."""
_MARK = f'echo "{GROUP_MARK} $$"'

_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_USER = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]*\$?")


def as_given(command: Command) -> tuple[str, ...] | str:
    """Return a command as results and messages show it.

    Raises:
        TypeError: It is neither a string nor a sequence of strings and paths.
        ValueError: It is empty, or holds a NUL byte.
    """
    given = command if isinstance(command, str) else tuple(os.fspath(word) for word in command)
    words = (given,) if isinstance(given, str) else given
    if not words or not words[0]:
        raise ValueError("an empty command cannot be run")
    for word in words:
        if not isinstance(word, str):
            raise TypeError(f"a command's words are strings, not {word!r}")
        if "\0" in word:
            raise ValueError(f"a command cannot hold a NUL byte: {word!r}")
    return given


def quote_argv(argv: Sequence[str]) -> str:
    """Join words so that a shell sees exactly these.

    Unlike :func:`shlex.join` the first word is always quoted: bare, ``time``
    is a keyword of bash and ``A=b`` an assignment.
    """
    first = "'" + argv[0].replace("'", "'\"'\"'") + "'"
    return " ".join([first, *map(shlex.quote, argv[1:])])


def command_line(
    command: tuple[str, ...] | str,
    *,
    env: Mapping[str, str],
    cwd: str | None,
    user: str | None,
    login: str,
) -> str:
    """Return the script that runs a command.

    Its first line reports the shell's process id on stderr, which is its process
    group too (sshd starts every command in a session of its own), so that the
    command can be signalled from a second one: sshd refuses SSH's own signal
    request for root (``session_signal_req()`` in OpenSSH's ``session.c``). The
    last shell before the command prints the same line on stdout. What comes
    before these lines is from start-up files of a shell (``.bashrc``,
    ``BASH_ENV``), which may print what they like.

    Args:
        command: From :func:`as_given`.
        env: Variables to add to those of the login.
        cwd: Working folder; None for the user's home.
        user: Who runs it; None for the login user.
        login: The user that logs in: root changes to others by ``runuser(1)``,
            anybody else by ``sudo -n``.
    """
    for name, value in env.items():
        if not _VARIABLE.fullmatch(name) or "\0" in value:
            raise ValueError(f"no environment variable can be {name}={value!r}")
    lines = [f"{_MARK} >&2"]
    if user is None or user == login:
        lines.append(_MARK)
        lines += [f"cd -- {shlex.quote(cwd)} || exit 125"] if cwd is not None else []
        lines += [f"export {name}={shlex.quote(value)}" for name, value in env.items()]
        lines.append(command if isinstance(command, str) else quote_argv(command))
    else:
        lines += [] if isinstance(command, str) else [_MARK]
        lines.append(_folder_of(user, cwd))
        lines.append(_as_user(command, env=env, user=user, login=login))
    return "\n".join(lines)


def _folder_of(user: str, cwd: str | None) -> str:
    if not _USER.fullmatch(user):
        raise ValueError(f"{user!r} is not a user's name")
    if cwd is not None:
        return f"cd -- {shlex.quote(cwd)} || exit 125"
    # A tilde is only expanded unquoted, and the name was checked above. A user
    # without a home (nobody) starts in / rather than in a folder of root's.
    return f"cd -- ~{user} 2>/dev/null || cd /"


def _as_user(command: tuple[str, ...] | str, *, env: Mapping[str, str], user: str, login: str) -> str:
    change = ["runuser", "-u", user, "--"] if login == "root" else ["sudo", "-n", "-H", "-u", user, "--"]
    if env:
        change += ["env", *(f"{name}={value}" for name, value in env.items())]
    if isinstance(command, str):
        # The login user's own shell, so that naming a user does not change the
        # language that the string is written in.
        script = shlex.quote(f"{_MARK}\n{command}")
        return f'{quote_argv(change)} "${{SHELL:-/bin/sh}}" -c {script}'
    return quote_argv([*change, *command])


def signal_line(signal: str, group: int, *, as_root: bool) -> str:
    """Return the command that signals a process group.

    Args:
        signal: Name without "SIG".
        group: Process group.
        as_root: Some of its processes may belong to root, and the login does not.
    """
    return f"{'sudo -n ' if as_root else ''}kill -s {signal} -- -{group}"
