"""What a guest printed, made safe to show and to search.

A guest decides every byte of its console. Shown raw, they could move a
terminal's cursor, set its title or answer its queries, so all control
functions of ECMA-48 are removed and only text, tabs and newlines remain.
"""

from __future__ import annotations

import codecs
import re

_ESCAPES = re.compile(
    r"\x1b[\]PX^_][^\x07\x1b]{0,4096}(?:\x07|\x1b\\)"  # OSC, DCS, SOS, PM, APC: systemd 257 sends OSC 3008
    r"|\x1b\[[0-?]{0,64}[ -/]{0,16}[@-~]"  # CSI
    r"|\x1b[ -/]{0,16}[0-~]"  # two-character and nF sequences
)
_NEWLINES = re.compile(r"\r+\n|\n\r+|\r+")
_CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069]")
_OPEN_END = re.compile(r"(?:\x1b(?:\[[ -?]{0,80}|[\]PX^_][^\x07\x1b]{0,4096}\x1b?|[ -/]{0,16})?|\r+)\Z")


def plain(text: str) -> str:
    """Return ``text`` without control functions, every line ended by a newline.

    A lone carriage return, which redraws a line, becomes a line of its own:
    what it would have painted over stays readable.
    """
    return _CONTROLS.sub("", _NEWLINES.sub("\n", _ESCAPES.sub("", text)))


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
