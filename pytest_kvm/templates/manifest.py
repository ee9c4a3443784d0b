"""What a template is made of, as it is written down beside its files."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from typing import Any

FORMAT = 1
"""Of an entry on disk. Another number is another plugin's: such an entry is dropped."""


class Damage(Exception):  # noqa: N818 - it is no failure: the template is built again
    """An entry cannot be used; the text says why, for a warning."""


@dataclass(frozen=True, kw_only=True)
class FileRecord:
    """One file's contents, and how it looked when they were last read."""

    size: int
    """Bytes."""
    sha256: str
    """:func:`~pytest_kvm.templates.digest.digest_of` of it."""
    mtime_ns: int
    ctime_ns: int
    inode: int


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What the store knows of a template."""

    key: str
    format: int
    created: str
    """When it was published, ISO 8601 in UTC."""
    summary: str
    """What was frozen, for people: the spec."""
    versions: dict[str, str]
    """Of QEMU, libvirt and the plugin that made it."""
    facts: dict[str, Any]
    """What starting a clone needs to know, as JSON has it."""
    files: dict[str, FileRecord]
    """By name, without a folder."""

    def to_json(self) -> str:
        """Return the manifest as it is stored: with a checksum over itself."""
        content = asdict(self)
        return json.dumps({"checksum": _checksum(content), "manifest": content}, indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Manifest:
        """Read a stored manifest.

        Raises:
            Damage: It is none, is not what was written, or of another format.
        """
        try:
            stored = json.loads(text)
            content, checksum = stored["manifest"], stored["checksum"]
            if content["format"] != FORMAT:
                raise Damage(f"its format is {content['format']!r}, not {FORMAT}")
            if checksum != _checksum(content):
                raise Damage("its manifest is not what was written")
            files = {_plain(name): FileRecord(**record) for name, record in content.pop("files").items()}
            return cls(**content, files=files)
        except (ValueError, TypeError, KeyError, AttributeError) as problem:
            raise Damage(f"its manifest cannot be read: {problem!r}") from None


def _checksum(content: dict[str, Any]) -> str:
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()


def _plain(name: str) -> str:
    if name in {"", ".", ".."} or "/" in name:
        raise ValueError(f"{name!r} is not a file's name")
    return name
