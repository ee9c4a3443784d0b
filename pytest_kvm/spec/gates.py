"""Gates: what fails a test beside its own assertions, if a guest shows it after the test."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from pytest_kvm.errors import SpecError
from pytest_kvm.spec.value import check_choice, check_patterns, put, spec_value

Priority = Literal["emerg", "alert", "crit", "err", "warning", "notice", "info", "debug"]
"""Priorities of the journal, the worst first, as ``journalctl --priority`` takes them."""
_ALLOWED = ("journal", "failed_units", "core_dumps", "avc")


@spec_value
class Gates:
    """What a guest must not show after a test; each gate is off unless it is named.

    What is allowed are regular expressions, which are searched for in each line or message.
    """

    journal: Priority | None = None
    """Messages in the journal since the test began, of this priority or a worse one."""
    failed_units: bool = False
    """systemd units that are failed when the test has ended, whenever they failed."""
    core_dumps: bool = False
    """Core dumps that were written since the test began."""
    avc: bool = False
    """What SELinux or AppArmor has denied since the test began."""
    allow_journal: Sequence[str] = ()
    allow_failed_units: Sequence[str] = ()
    allow_core_dumps: Sequence[str] = ()
    allow_avc: Sequence[str] = ()

    @property
    def is_any_on(self) -> bool:
        """Whether the guest has to be asked for something."""
        return self.journal is not None or self.failed_units or self.core_dumps or self.avc

    def __post_init__(self) -> None:
        """Check the patterns, and that each belongs to a gate."""
        if self.journal is not None:
            check_choice(self.journal, Priority, field="Gates.journal")
        for gate in _ALLOWED:
            name = f"allow_{gate}"
            patterns = check_patterns(getattr(self, name), field=f"Gates.{name}")
            put(self, name, patterns)
            if patterns and not getattr(self, gate):
                value = '"err"' if gate == "journal" else "True"
                raise SpecError(
                    f"Gates.{name}: the gate {gate} is off, so there is nothing to allow",
                    resolution=f"name the gate, too: {gate}={value}",
                )
