"""How much of this machine all guests may have together."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal
from urllib.parse import urlsplit

from pytest_kvm.errors import NoCapacity
from pytest_kvm.host.resources import cpus_available, memory_total_mib
from pytest_kvm.settings import Limit, Settings

_VCPUS_EACH = 10
"""Virtual processors for each processor; docs/explanation/admission.md says why."""
_KEPT = 8
"""An eighth of the memory is left to everything else."""
_MOST_KEPT_MIB = 2048

Resource = Literal["memory", "vcpus", "guests"]


@dataclass(frozen=True, kw_only=True)
class Ceiling:
    """The limit of one resource."""

    resource: Resource
    most: float
    """MiB, or a number; infinite if there is no limit."""
    reason: str
    """Where it comes from, for people."""

    @property
    def flag(self) -> str:
        """The option that raises it."""
        return f"--kvm-max-{self.resource}"

    def __str__(self) -> str:
        return f"{in_words(self.resource, self.most)} ({self.reason})"


@dataclass(frozen=True, kw_only=True)
class Limits:
    """The limits of one run. They are for the guests of all runs together."""

    memory: Ceiling
    vcpus: Ceiling
    guests: Ceiling
    is_measured: bool
    """Whether guests may only have the memory that nothing else on this machine has."""

    @property
    def ceilings(self) -> tuple[Ceiling, Ceiling, Ceiling]:
        """All of them, in the order of an amount's numbers."""
        return self.memory, self.vcpus, self.guests

    def check(self, amounts: tuple[float, float, float], *, whose: str) -> None:
        """Refuse what could not be had even if no guest ran.

        Args:
            amounts: Memory in MiB, virtual processors, guests.
            whose: Who asks, for the message ("web", "the guests of test_x.py::test_y").

        Raises:
            NoCapacity: It is more than a limit.
        """
        for amount, ceiling in zip(amounts, self.ceilings, strict=True):
            if amount > ceiling.most:
                raise NoCapacity(
                    f"{whose}: there is never room for {in_words(ceiling.resource, amount)}: "
                    f"all guests on this machine together may have {ceiling}",
                    resolution=f"ask for less, or raise the limit with {ceiling.flag}",
                )


def limits_of(settings: Settings) -> Limits:
    """Return the limits of a run."""
    # Nothing is known of what another machine has.
    is_here = not urlsplit(settings.uri).hostname
    return Limits(
        memory=_ceiling("memory", settings.max_memory, auto=_memory_for_guests if is_here else None),
        vcpus=_ceiling("vcpus", settings.max_vcpus, auto=_vcpus_for_guests if is_here else None),
        guests=_ceiling("guests", settings.max_guests, auto=None),
        is_measured=is_here and settings.max_memory == "auto",
    )


def in_words(resource: Resource, amount: float) -> str:
    """Return an amount with its unit: ``"1.5 GiB of memory"``, ``"1 guest"``."""
    if resource == "memory":
        return f"{mib_in_words(amount)} of memory"
    name = "virtual processor" if resource == "vcpus" else "guest"
    return f"{amount:.0f} {name}{'' if amount == 1 else 's'}"


def mib_in_words(mib: float) -> str:
    """Return a size in the unit that people would use: ``"512 MiB"``, ``"1.5 GiB"``."""
    return f"{mib:.0f} MiB" if mib < 1024 else f"{round(mib / 1024, 2):g} GiB"


def _ceiling(resource: Resource, limit: Limit, *, auto: Callable[[], tuple[float, str]] | None) -> Ceiling:
    if isinstance(limit, int):
        return Ceiling(resource=resource, most=limit, reason=f"--kvm-max-{resource}")
    most, reason = auto() if limit == "auto" and auto is not None else (math.inf, "no limit")
    return Ceiling(resource=resource, most=most, reason=reason)


def _memory_for_guests() -> tuple[float, str]:
    total = memory_total_mib()
    kept = min(total // _KEPT, _MOST_KEPT_MIB)
    return total - kept, f"{mib_in_words(total)} in all, less {mib_in_words(kept)} for everything else"


def _vcpus_for_guests() -> tuple[float, str]:
    cpus = cpus_available()
    return cpus * _VCPUS_EACH, f"{_VCPUS_EACH} for each of {cpus} processor{'' if cpus == 1 else 's'}"
