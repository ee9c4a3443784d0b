"""Names of files and folders for tests, whatever their ids are."""

from __future__ import annotations

import re
from hashlib import sha256
from pathlib import Path

_NOT_IN_NAMES = re.compile(r"[^A-Za-z0-9_.\-\[\]]+")
_LONGEST_NAME = 120


def place_of(nodeid: str) -> Path:
    """Return a relative path for what is kept of a test; no other test in Python has the same."""
    path, _, test = nodeid.partition("::")
    name, bracket, parameters = test.partition("[")
    parts = [*path.split("/"), name.replace("::", "-") + bracket + parameters]
    return Path(*map(file_name, parts))


def file_name(text: str) -> str:
    """Return a text if it can be a file's name; else what can be kept of it, and a digest."""
    name = _NOT_IN_NAMES.sub("-", text)[-_LONGEST_NAME:].strip("-.")
    return name if name == text else f"{name}-{sha256(text.encode(errors='surrogatepass')).hexdigest()[:8]}"
