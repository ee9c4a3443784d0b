"""Text that a guest may have written, made safe to show.

A guest decides every byte of its console, of what commands print, of the names
of its files. Shown raw, they could move a terminal's cursor, set its title or
answer its queries, so all control functions of ECMA-48 are removed and only
text, tabs and newlines remain. Every error and every line of a guest's log
passes :func:`plain`; what a test asks for (``result.stdout``) does not.
"""

from __future__ import annotations

import logging
import re

_ESCAPES = re.compile(
    r"\x1b[\]PX^_][^\x07\x1b]{0,4096}(?:\x07|\x1b\\)"  # OSC, DCS, SOS, PM, APC: systemd 257 sends OSC 3008
    r"|\x1b\[[0-?]{0,64}[ -/]{0,16}[@-~]"  # CSI
    r"|\x1b[ -/]{0,16}[0-~]"  # two-character and nF sequences
)
_NEWLINES = re.compile(r"\r+\n|\n\r+|\r+")
_CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069]")


def plain(text: str) -> str:
    """Return ``text`` without control functions, every line ended by a newline.

    A lone carriage return, which redraws a line, becomes a line of its own:
    what it would have painted over stays readable.
    """
    return _CONTROLS.sub("", _NEWLINES.sub("\n", _ESCAPES.sub("", text)))


class _PlainRecords(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        record.msg, record.args = plain(record.getMessage()), None
        return True


_PLAIN_RECORDS = _PlainRecords()


def guest_log(name: str) -> logging.Logger:
    """Return a guest's logger, ``pytest_kvm.<name>``; what it passes on is plain."""
    log = logging.getLogger(f"pytest_kvm.{name}")
    log.addFilter(_PLAIN_RECORDS)  # once: logging knows it again
    return log
