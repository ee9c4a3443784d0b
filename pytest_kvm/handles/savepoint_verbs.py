"""A guest's verb that keeps a point to go back to."""

from __future__ import annotations

import itertools

from pytest_kvm.handles.booted import Booted
from pytest_kvm.machine.savepoints import Savepoint, take

_numbers = itertools.count(1)


class SavepointVerbs(Booted):
    """By hand what the plugin does between tests."""

    def savepoint(self, name: str | None = None) -> Savepoint:
        """Take a savepoint of memory and all writable disks together.

        Args:
            name: How messages call it; it need not be unique.

        Returns:
            Its ``restore()`` and ``drop()``; a context manager that does both.

        Raises:
            SavepointRefused: A background process or a forwarded port of the
                test is open, or a writable disk is not qcow2; the message names it.
            SnapshotFailed: QEMU failed, for instance for want of room.
        """
        machine = self.machine
        number = next(_numbers)
        tag = f"hand-{number}"
        take(machine, tag)
        return Savepoint(name or f"savepoint {number}", tag=tag, machine=machine, use=lambda: self.machine)
