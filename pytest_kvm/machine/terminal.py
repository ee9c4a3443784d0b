"""What a guest prints on its console, as it comes, without control functions."""

from __future__ import annotations

import codecs
import re

from pytest_kvm.plaintext import plain

_OPEN_END = re.compile(r"(?:\x1b(?:\[[ -?]{0,80}|[\]PX^_][^\x07\x1b]{0,4096}\x1b?|[ -/]{0,16})?|\r+)\Z")


class PlainDecoder:
    """Decode and clean a stream that arrives in arbitrary pieces.

    A sequence cut in two by a piece's end is held back until the rest comes.
    """

    def __init__(self) -> None:
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")
        self._held = ""

    def feed(self, data: bytes) -> str:
        """Return the clean text that ``data`` completes."""
        text = self._held + self._utf8.decode(data)
        tail = _OPEN_END.search(text, max(0, len(text) - 5000))
        self._held = text[tail.start() :] if tail else ""
        return plain(text[: len(text) - len(self._held)])
