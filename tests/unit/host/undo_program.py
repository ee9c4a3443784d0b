"""Does as programs that undo: run by test_undo_notes.py, with what a note says."""

from __future__ import annotations

import sys
import time
from pathlib import Path

match sys.argv[1:]:
    case ["log", path, word]:
        with Path(path).open("a") as log:
            log.write(word + "\n")
    case ["remove", path]:
        Path(path).unlink()
    case ["fail", *words]:
        sys.exit(" ".join(words) or 1)
    case _:
        time.sleep(60)  # noqa: TID251 - it is killed
