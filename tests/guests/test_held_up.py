"""A host that is busy with other things takes nothing from a guest's deadlines."""

from __future__ import annotations

import os
import subprocess
import time
from contextlib import ExitStack
from pathlib import Path

import pytest

from pytest_kvm.errors import CommandTimeout

SECONDS = 3
BUSY = ["sh", "-c", "while :; do :; done"]


@pytest.fixture
def processor():
    """One of the host's, for two to share."""
    return {min(os.sched_getaffinity(0))}


@pytest.fixture
def cramped(guest, processor):
    """The guest, on that processor alone."""
    threads = [int(task.name) for task in Path(f"/proc/{guest.machine.domain.pid}/task").iterdir()]
    with ExitStack() as stack:
        for thread in threads:
            stack.callback(os.sched_setaffinity, thread, os.sched_getaffinity(thread))
            os.sched_setaffinity(thread, processor)
        yield guest


def test_a_deadline_stands_still_while_the_guest_waits_for_a_processor(cramped, processor):
    clock = cramped.machine.domain.clock
    with subprocess.Popen(BUSY) as another:
        try:
            os.sched_setaffinity(another.pid, processor)
            begun, begun_for_the_guest = time.monotonic(), clock()
            with pytest.raises(CommandTimeout):
                cramped.run(BUSY, timeout=SECONDS)
            took, took_for_the_guest = time.monotonic() - begun, clock() - begun_for_the_guest
        finally:
            another.kill()
    assert took_for_the_guest >= SECONDS
    # The guest had its half of the processor.
    assert took - took_for_the_guest > 0.5
