"""Figures beside their aims: those of :mod:`bench.state`, and a table for any."""

from __future__ import annotations

import statistics
from dataclasses import dataclass

from rich.table import Table

from bench.crowd import Crowd, slope

Times = dict[str, list[float]]

_COLD = "cold to agent"
_STOCK = "stock boot to login"
_AIMS: dict[str, tuple[float | None, str | None]] = {
    "stock boot to login": (None, None),
    "stock boot to ready": (None, None),
    "cold to agent": (None, None),
    "cold to ssh": (None, None),
    "first start to agent": (None, None),
    "first start to ssh": (None, None),
    "warm: process to agent": (None, "clone to agent"),
    "warm: request to agent": (0.75, "clone to agent"),
    "warm: process to ssh": (None, "clone to ssh"),
    "warm: request to ssh": (1.5, "clone to ssh"),
    "warm: request to agent, RAM on tmpfs": (0.75, "clone to agent"),
    "warm: request to ssh, RAM on tmpfs": (1.5, "clone to ssh"),
    "reset: hit to agent": (0.2, "resume to agent"),
    "reset: load to agent": (None, "load to agent"),
    "reset: miss to agent": (0.75, "clone to agent"),
    "reset: hit to ssh": (0.8, "resume to ssh"),
    "reset: load to ssh": (0.8, "load to ssh"),
    "reset: miss to ssh": (0.8, "clone to ssh"),
    "reset: load to take": (None, None),
    "warm: teardown after agent": (0.03, None),
    "warm: teardown after ssh": (0.03, None),
    "warm: process with agent": (None, None),
}
"""Seconds that are the aim, and what it is to do the same by hand."""
_MIB_EACH = 50.0
_SECONDS_EACH = 0.45
_FLAT = 1.1
_STOCK_BY_WARM = 60.0


@dataclass(frozen=True, kw_only=True)
class Row:
    """One figure."""

    name: str
    measured: float
    unit: str = "s"
    aim: float | None = None
    at_least: bool = False
    """Whether the aim is a least, not a most."""
    raw: float | None = None
    """The same by hand."""
    cold: float | None = None
    """A cold boot's seconds by this figure."""

    @property
    def is_met(self) -> bool | None:
        """Whether the aim is reached; None where there is none."""
        if self.aim is None:
            return None
        return self.measured >= self.aim if self.at_least else self.measured <= self.aim


def rows(times: Times, crowds: list[Crowd]) -> list[Row]:
    """Return every figure, medians of all rounds."""
    medians = {what: statistics.median(each) for what, each in times.items()}
    found = [
        Row(
            name=name,
            measured=medians[name],
            aim=aim,
            raw=medians[f"raw: {by_hand}"] if by_hand else None,
            cold=medians[_COLD] / medians[name],
        )
        for name, (aim, by_hand) in _AIMS.items()
        if name in medians
    ]
    if _STOCK in medians:
        by_warm = medians[_STOCK] / medians["warm: request to agent"]
        found.append(
            Row(name="stock boot / warm start", measured=by_warm, unit="×", aim=_STOCK_BY_WARM, at_least=True)
        )
    return found + _of_crowds(crowds)


def _of_crowds(crowds: list[Crowd]) -> list[Row]:
    most, two = crowds[-1], next(each for each in crowds if each.clones > 1)
    count = most.clones
    return [
        Row(name=f"{count} clones, each", measured=most.each, aim=_SECONDS_EACH),
        Row(name="one clone more", measured=slope(crowds)),
        Row(name=f"each of {count} / each of 2", measured=most.each / two.each, unit="×", aim=_FLAT),
        Row(
            name=f"memory of each of {count}, MemAvailable",
            measured=most.available_mib / count,
            unit="MiB",
            aim=_MIB_EACH,
        ),
        Row(name=f"memory of each of {count}, Pss", measured=most.pss_mib / count, unit="MiB", aim=_MIB_EACH),
    ]


def table(figures: list[Row]) -> Table:
    """Return the figures as a table."""
    made = Table("median", "measured", "aim", "met", "by hand", "cold boot is")
    for row in figures:
        aim = "" if row.aim is None else f"{'≥' if row.at_least else '≤'} {row.aim:g}"
        met = {None: "", True: "yes", False: "no"}[row.is_met]
        raw = "" if row.raw is None else f"{row.raw:.3f} ({row.measured / row.raw:.1f} ×)"
        cold = "" if row.cold is None else f"{row.cold:.0f} ×"
        made.add_row(row.name, f"{row.measured:.3f} {row.unit}", aim, met, raw, cold)
    return made


def crowd_table(crowds: list[Crowd]) -> Table:
    """Return what each size of crowd cost."""
    made = Table("clones", "seconds", "each", "MemAvailable, MiB each", "Pss, MiB each", "removed in")
    for each in crowds:
        made.add_row(
            str(each.clones),
            f"{each.seconds:.2f}",
            f"{each.each:.2f}",
            f"{each.available_mib / each.clones:.1f}",
            f"{each.pss_mib / each.clones:.1f}",
            f"{each.teardown:.2f}",
        )
    return made
