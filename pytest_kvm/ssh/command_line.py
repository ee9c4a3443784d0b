"""Makes the one string that sshd passes to the login shell out of a command, a user and a folder.

SSH has no argument list: ``sshd(8)`` runs the login shell with ``-c`` and one
string. The functions here turn text into text, for any POSIX login shell.
"""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Mapping, Sequence

Command = str | Sequence[str]
"""A list is quoted word by word; a string is passed to the guest's shell unchanged."""

GROUP_MARK = "pytest-kvm-group"
"""First word of the mark: a line with the command's process group, before its output on both streams."""
_MARK = f'echo "{GROUP_MARK} $$"'

_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_USER = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]*\$?")


def as_given(command: Command) -> tuple[str, ...] | str:
    """Return a command as results and messages show it.

    Raises:
        TypeError: The command is neither a string nor a sequence of strings and paths.
        ValueError: The command is empty, or holds a NUL byte.
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
    """Join words into a string that a shell splits into the same words.

    Unlike in :func:`shlex.join` the first word is always quoted, because without
    quotes ``time`` is a keyword of bash, and ``A=b`` an assignment.
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

    The first line of the script prints the mark with the shell's process id on
    stderr. The process id is the process group too, because sshd starts every
    command in a session of its own. By the process group a second command can
    signal the first: sshd refuses SSH's own signal request for root
    (``session_signal_req()`` in OpenSSH's ``session.c``). The last shell before
    the command prints the mark on stdout. Output before the mark is from start-up
    files of a shell (``.bashrc``, ``BASH_ENV``), which may print anything.

    Args:
        command: From :func:`as_given`.
        env: Variables to add to those of the login.
        cwd: Working folder; None: the user's home.
        user: The user that runs the command; None: the login user.
        login: The user that logs in. To run a command as another user, root uses
            ``runuser(1)``, and any other login ``sudo -n``.
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
    # A shell expands a tilde only without quotes; the name was checked above. A user
    # without a home (such as nobody) starts in / and not in a folder of root's.
    return f"cd -- ~{user} 2>/dev/null || cd /"


def _as_user(command: tuple[str, ...] | str, *, env: Mapping[str, str], user: str, login: str) -> str:
    change = ["runuser", "-u", user, "--"] if login == "root" else ["sudo", "-n", "-H", "-u", user, "--"]
    if env:
        change += ["env", *(f"{name}={value}" for name, value in env.items())]
    if isinstance(command, str):
        # The login user's shell, also for another user: the string is always
        # written for the same shell.
        script = shlex.quote(f"{_MARK}\n{command}")
        return f'{quote_argv(change)} "${{SHELL:-/bin/sh}}" -c {script}'
    return quote_argv([*change, *command])


def signal_line(signal: str, group: int, *, as_root: bool) -> str:
    """Return the command that signals a process group.

    Args:
        signal: Name without "SIG".
        group: Process group.
        as_root: Use sudo: the login user is not root, and some of the processes may be root's.
    """
    return f"{'sudo -n ' if as_root else ''}kill -s {signal} -- -{group}"
