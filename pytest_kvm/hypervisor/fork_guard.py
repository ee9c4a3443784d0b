"""Keep forked children from using the libvirt objects of their parent.

A forked child (multiprocessing, pytest-forked) inherits the memory of a
connection, but neither its threads nor its locks. A call on the connection
would hang in the child. Freeing the connection there would stop bookkeeping
of the embedded driver that the parent still needs. So in a child every object
is disarmed, which makes freeing it harmless, and using it raises an error.
"""

from __future__ import annotations

import os
import weakref
from typing import Any, Generic, TypeVar

from pytest_kvm.errors import ConnectionFailed

T = TypeVar("T")


class ProcessBound(Generic[T]):
    """A libvirt object that only the process that made it may use."""

    def __init__(self, raw: T) -> None:
        self._raw = raw
        self._pid = os.getpid()
        _everything.add(self)

    def get(self) -> T:
        """Return the object.

        Raises:
            ConnectionFailed: This is a forked child.
        """
        if os.getpid() != self._pid:
            raise ConnectionFailed(
                f"a libvirt connection of process {self._pid} was used in its forked child {os.getpid()}",
                resolution="use guests in the process that started them; multiprocessing can use 'spawn'",
            )
        return self._raw

    def disarm(self) -> None:
        """Keep the object's destructor from calling libvirt."""
        raw: Any = self._raw
        raw._o = None  # noqa: SLF001 - what libvirt.py's own __del__ looks at


_everything: weakref.WeakSet[ProcessBound[Any]] = weakref.WeakSet()


def _disarm_all() -> None:
    for bound in list(_everything):
        bound.disarm()


os.register_at_fork(after_in_child=_disarm_all)
