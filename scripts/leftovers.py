"""Tell what a run left on this machine: processes, run folders, shared memory.

    python scripts/leftovers.py note FILE    # before: write down what there is
    python scripts/leftovers.py check FILE   # after: list what is new, exit 1 if anything is

It knows nothing of the package on purpose: it is a second opinion.
"""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path

OURS = re.compile(rb"qemu|pytest[-_]kvm|mmdebstrap|libvirt|virtlogd|virtqemud|dnsmasq")
"""What a process of ours has on its command line."""

FOLDERS = {
    "/dev/shm": "*",
    "/run/user": "*/libvirt/**/*.sock",
    "/tmp": "*pytest-kvm*",
    "/var/tmp": "pytest-kvm-*/kvm-runs/*/",
}


def main() -> int:
    """Note or check."""
    verb, file = sys.argv[1], Path(sys.argv[2])
    if verb == "note":
        file.write_text(json.dumps([*processes(), *paths()]))
        return 0
    known = set(json.loads(file.read_text()))
    left = [each for each in (*processes(), *paths()) if each not in known]
    for each in left:
        print(f"leftovers: {each}", file=sys.stderr)
    print(f"leftovers: {len(left) or 'nothing'} left behind", flush=True)
    return 1 if left else 0


def processes() -> Iterator[str]:
    """Yield pid, start time and command line of processes that may be ours."""
    spared = set(ancestors())
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            command_line = (folder / "cmdline").read_bytes()
            started = (folder / "stat").read_text().rpartition(")")[2].split()[19]
        except OSError:  # it ended meanwhile
            continue
        if OURS.search(command_line) and int(folder.name) not in spared:
            shown = command_line.replace(b"\0", b" ").decode(errors="replace")[:300]
            yield f"process {folder.name}, started at {started}: {shown}"


def ancestors() -> Iterator[int]:
    """Yield this process and those it was started by."""
    pid = os.getpid()
    while pid > 0:
        yield pid
        pid = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def paths() -> Iterator[str]:
    """Yield files and folders that only a living run may have."""
    for folder, pattern in FOLDERS.items():
        yield from (f"path {path}" for path in Path(folder).glob(pattern))


if __name__ == "__main__":
    sys.exit(main())
