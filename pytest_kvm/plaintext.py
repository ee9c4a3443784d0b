"""Text that a guest may have written, made safe to show.

A guest decides every byte of its console, of what commands print, of the names
of its files. Shown raw, they could move a terminal's cursor, set its title or
answer its queries, so all control functions of ECMA-48 are removed and only
text, tabs and newlines remain. Every error and every line of a guest's log
passes :func:`plain`; output that a test reads (``result.stdout``) does not.
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

    A lone carriage return, which makes a terminal overwrite the line, becomes a
    newline: the text before it stays readable.
    """
    return _CONTROLS.sub("", _NEWLINES.sub("\n", _ESCAPES.sub("", text)))


def one_line(text: str) -> str:
    """Return ``text`` without control functions on one line: newlines become ``?``, tabs become spaces."""
    shown = plain(text).replace("\n", "?").replace("\t", " ")
    return shown.encode(errors="backslashreplace").decode()  # surrogates cannot be printed


class _PlainRecords(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        record.msg, record.args = plain(record.getMessage()), None
        return True


_PLAIN_RECORDS = _PlainRecords()


def guest_log(name: str) -> logging.Logger:
    """Return a guest's logger, ``pytest_kvm.<name>``; its records are made plain."""
    log = logging.getLogger(f"pytest_kvm.{name}")
    log.addFilter(_PLAIN_RECORDS)  # a second call adds nothing: logging ignores a filter that it has
    return log
