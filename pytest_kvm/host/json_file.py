"""Small JSON files that another process may read at any moment, and that are read with suspicion.

This module imports only the standard library, because the watcher uses it, too.
"""

from __future__ import annotations

import json
import os
import stat
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn, cast

_LARGEST = 64 * 1024


def write(path: Path, content: Mapping[str, Any] | Sequence[Any]) -> None:
    """Write a file that only this user may read; a reader sees its former content or the new one.

    Raises:
        OSError: It cannot be written; the former content is still there.
    """
    unfinished = path.with_name(f"{_unfinished_prefix(path.name)}{os.getpid()}-{threading.get_ident()}")
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW
    try:
        with os.fdopen(os.open(unfinished, flags, 0o600), "w", encoding="utf-8") as file:
            file.write(json.dumps(content, sort_keys=True) + "\n")
        os.replace(unfinished, path)  # noqa: PTH105 - named as rename(2), which replaces at once
    except OSError:
        unfinished.unlink(missing_ok=True)
        raise


def is_unfinished(path: Path, name: str) -> bool:
    """Say whether a file is what a killed process has left of a file with this name."""
    return path.name.startswith(_unfinished_prefix(name))


def _unfinished_prefix(name: str) -> str:
    return f".{name}."


def read(path: Path, *, owner: int) -> dict[str, Any] | None:
    """Return the entries of a file; None if there is none, or it is not an object in JSON.

    Neither links nor devices are followed, and of a large file only the beginning is read.

    Args:
        path: The file.
        owner: The user whose file it has to be.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
        with os.fdopen(descriptor, "rb") as file:
            found = os.fstat(descriptor)
            if not stat.S_ISREG(found.st_mode) or found.st_uid != owner:
                return None
            content = json.loads(file.read(_LARGEST), parse_constant=_refuse)
    except (OSError, ValueError, RecursionError):
        return None
    return cast("dict[str, Any]", content) if isinstance(content, dict) else None


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is no JSON")
