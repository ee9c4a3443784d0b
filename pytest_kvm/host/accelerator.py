"""Chooses the accelerator that runs the guests' code: KVM or TCG."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pytest_kvm.errors import KvmUnavailable
from pytest_kvm.host.kvm import kvm_usable
from pytest_kvm.settings import Accel


@dataclass(frozen=True, kw_only=True)
class Accelerator:
    """The accelerator of a run, and why it was chosen."""

    kind: Literal["kvm", "tcg"]
    reason: str
    """Why it was chosen; a clause for the report header."""


def accelerator(accel: Accel, *, cache_dir: Path) -> Accelerator:
    """Choose the accelerator that runs the guests' code.

    Args:
        accel: What the user asked for; ``auto`` takes KVM where it truly works.
        cache_dir: Folder that keeps the result of the KVM test.

    Raises:
        KvmUnavailable: KVM was asked for and does not work.
    """
    if accel == "tcg":
        return Accelerator(kind="tcg", reason="asked for")
    probe = kvm_usable(cache_dir)
    if probe.usable:
        return Accelerator(kind="kvm", reason=probe.reason)
    if accel == "kvm":
        raise KvmUnavailable(
            f"KVM was asked for and does not work here: {probe.reason}",
            resolution=probe.remedy or "use a machine with hardware virtualization, or --kvm-accel=auto",
        )
    return Accelerator(kind="tcg", reason=f"no KVM: {probe.reason}")
