"""What one guest has of this machine."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pytest_kvm.provision.admission_rules import NOTHING, Amount

if TYPE_CHECKING:
    from pytest_kvm.provision.admission import Admission

Tell = Callable[[str], None]
"""Is told what is waited for."""


@dataclass(eq=False, kw_only=True)
class Room:
    """What one guest has of this machine; see :meth:`Admission.room`."""

    admission: Admission
    name: str
    amount: Amount
    test: str
    """The test that asked for it."""
    is_wide: bool
    """Whether the guest outlives the test."""
    is_leaving: bool = False
    """Whether it is given back soon whatever happens: a spare clone, or a guest that is being removed."""
    granted: Amount = NOTHING
    pids: tuple[int, ...] = ()
    """The guest's QEMU processes."""
    is_released: bool = False

    def take_reserved(self) -> None:
        """Have as much of it granted as is reserved."""
        self.admission.take_reserved(self)

    def wait(self, tell: Tell) -> None:
        """Wait until all of it is granted.

        Raises:
            GuestGone: It was released meanwhile.
            NoCapacity: There is never room for it, or there was none in time.
        """
        self.admission.wait_for(self, tell)

    def leave(self) -> None:
        """Note that the guest is being removed."""
        self.is_leaving = True
        self.admission.note()

    def release(self) -> None:
        """Give it back; a second call does nothing."""
        self.admission.release(self)

    def note_process(self, pid: int | None) -> None:
        """Note a QEMU that it is for: what this has taken of its memory is no longer counted as free."""
        if pid is not None:
            alive = [each for each in self.pids if Path(f"/proc/{each}").exists()]
            self.pids = (*alive, pid)
            self.admission.note()

    @contextmanager
    def doubled(self) -> Generator[bool]:
        """Have room for another machine of the guest during a block, if there is any now.

        Yields:
            Whether there is: if not, the guest's machine has to go before the other is started.
        """
        second = self.admission.room_if_free(self.name, self.amount)
        try:
            yield second is not None
        finally:
            if second is not None:
                second.release()
