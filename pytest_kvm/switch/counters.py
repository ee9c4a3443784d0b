"""What passed a link, and what did not, and why."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any, Literal

Direction = Literal["out", "in"]
"""As the guest sees it: out of it, into it."""


@dataclass
class Tally:
    """One direction of a link."""

    frames: int = 0
    bytes: int = 0
    """Of frames, Ethernet header included."""
    dropped: Counter[str] = field(default_factory=Counter[str])
    """Frames that did not pass, by reason."""

    def as_json(self) -> dict[str, Any]:
        """Return the numbers."""
        return {"frames": self.frames, "bytes": self.bytes, "dropped": dict(self.dropped)}
