"""A host that is busy with other things takes nothing from a guest's deadlines."""

from __future__ import annotations

import os
import subprocess
import time
from contextlib import ExitStack

import pytest

from pytest_kvm.errors import CommandTimeout

SECONDS = 3


def test_a_deadline_stands_still_while_the_guest_waits_for_a_processor(guest):
    clock = guest.machine.domain.clock
    with ExitStack() as stack:
        for _ in range(2 * (os.cpu_count() or 1)):
            process = stack.enter_context(subprocess.Popen(["sh", "-c", "while :; do :; done"]))
            stack.callback(process.kill)
        begun, begun_for_the_guest = time.monotonic(), clock()
        with pytest.raises(CommandTimeout):
            guest.run("while :; do :; done", timeout=SECONDS)
        took, took_for_the_guest = time.monotonic() - begun, clock() - begun_for_the_guest
    assert took_for_the_guest >= SECONDS
    # Three want each of the host's processors: the guest had its share of them.
    assert took - took_for_the_guest > 0.5
