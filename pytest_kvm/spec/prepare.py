"""Prepare steps: what is done to a guest once, when it is ready and before it is saved as a template."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import field
from pathlib import Path
from typing import Any

from pytest_kvm.errors import SpecError
from pytest_kvm.spec.value import check_sequence, put, spec_value

_OWNER = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,31}(:[A-Za-z0-9_][A-Za-z0-9_.-]{0,31})?")
_MODE_LIMIT = 0o7777


@spec_value
class Script:
    """A script that root runs in the guest: given as text, or as a file on the host."""

    content: str | None = field(default=None, kw_only=False)
    """The script itself."""
    file: str | Path | None = None
    """A file on the host that holds the script."""
    interpreter: str | None = None
    """Absolute path of the program in the guest that runs the script; None: the
    one in the script's ``#!`` line, or ``/bin/sh`` if it has none."""

    def __post_init__(self) -> None:
        """Check that there is exactly one script, and the path of its interpreter."""
        if isinstance(self.content, Path):
            raise SpecError(
                f"Script.content: {str(self.content)!r} is a path, not a script",
                resolution=f"write Script(file={str(self.content)!r})",
            )
        if (self.content is None) == (self.file is None):
            raise SpecError(
                "Script: one of content and file is wanted",
                resolution='write Script("echo hello\\n") or Script(file="setup.sh")',
            )
        if self.content is not None and not (isinstance(self.content, str) and self.content.strip()):
            raise SpecError(f"Script.content: {self.content!r} is not a script")
        if self.file is not None:
            put(self, "file", _host_path(self.file, field="Script.file"))
        if self.interpreter is not None:
            _check_guest_path(self.interpreter, field="Script.interpreter")


@spec_value
class HostFile:
    """A file of the host, or a folder's content, that is copied into the guest.

    A folder's links, and the permission bits of everything in it, are kept;
    times may change.
    """

    source: str | Path = field(kw_only=False)
    """File or folder on the host."""
    path: str = field(kw_only=False)
    """Absolute path in the guest; with a slash at the end, the folder to put ``source`` into.
    Missing parent folders are made. A folder that exists in the guest is merged with ``source``."""
    mode: int | None = None
    """Permission bits of a single file; None: those of ``source``."""
    owner: str = "root:root"
    """"user", "user:group" or numbers, for everything that is copied."""

    def __post_init__(self) -> None:
        """Check paths, mode and owner."""
        put(self, "source", _host_path(self.source, field="HostFile.source"))
        _check_guest_path(self.path, field="HostFile.path")
        if self.mode is not None and (not isinstance(self.mode, int) or not 0 <= self.mode <= _MODE_LIMIT):
            raise SpecError(
                f"HostFile.mode: {self.mode!r} is not a file mode", resolution="write it in octal: 0o644"
            )
        if not isinstance(self.owner, str) or not _OWNER.fullmatch(self.owner):
            raise SpecError(f"HostFile.owner: {self.owner!r} is not user or user:group")


PrepareStep = str | Sequence[str] | Script | HostFile
"""A string is run by root's shell, a list without a shell."""


def checked_steps(steps: Sequence[PrepareStep], *, field: str) -> tuple[PrepareStep, ...]:
    """Check each step and return all as a tuple; a command that is a list becomes a tuple.

    Raises:
        SpecError: One of them is no step.
    """
    if isinstance(steps, (str, bytes, Script, HostFile)):
        raise SpecError(f"{field}: {steps!r} is one step, a list is wanted", resolution=f"write [{steps!r}]")
    return tuple(_checked_step(step, field=f"{field}[{index}]") for index, step in enumerate(steps))


def _checked_step(step: object, *, field: str) -> PrepareStep:
    if isinstance(step, (Script, HostFile)):
        return step
    if isinstance(step, Path):
        raise SpecError(
            f"{field}: {str(step)!r} is a path, and a path alone says not what to do with it",
            resolution=f"write Script(file={str(step)!r}) to run it, HostFile({str(step)!r}, …) to copy it",
        )
    if not isinstance(step, (str, Sequence)) or isinstance(step, (bytes, bytearray)):
        raise SpecError(f"{field}: {step!r} is neither a command, a Script nor a HostFile")
    command = step if isinstance(step, str) else check_sequence(step, field=field)
    words: tuple[Any, ...] = (command,) if isinstance(command, str) else command
    if not words or not words[0].strip() or any("\0" in word for word in words):
        raise SpecError(f"{field}: {step!r} is not a command that can be run")
    return command


def _host_path(value: object, *, field: str) -> Path:
    if not isinstance(value, (str, Path)) or not str(value) or "\0" in str(value):
        raise SpecError(f"{field}: {value!r} is not a path")
    return Path(value)


def _check_guest_path(value: object, *, field: str) -> None:
    if not isinstance(value, str) or not value.startswith("/") or "\0" in value:
        raise SpecError(f"{field}: {value!r} is not an absolute path")
