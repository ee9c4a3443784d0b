"""Whether this machine is short of memory, as the kernel measures it.

https://docs.kernel.org/accounting/psi.html: the share of the last ten seconds in
which some process waited for memory, of the whole machine and of each control group.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from pytest_kvm.host.cgroups import own_groups

_OF_THE_MACHINE = Path("/proc/pressure/memory")
_AVERAGE = re.compile(r"^some avg10=([\d.]+)", re.MULTILINE)


def memory_pressure(machine: Path = _OF_THE_MACHINE) -> float:
    """Return the percentage of time in which some process waited for memory; 0 if the kernel does not tell.

    Args:
        machine: The file of the whole machine.
    """
    return max(_averages(machine), default=0.0)


def _averages(machine: Path) -> Iterator[float]:
    for path in (machine, *(folder / "memory.pressure" for folder in own_groups())):
        with suppress(OSError):  # a kernel without PSI, or with PSI switched off
            found = _AVERAGE.search(path.read_text())
            if found is not None:
                yield float(found[1])
