"""Forbid what a guest must not show after a test."""

from __future__ import annotations

import pytest

import pytest_kvm as kvm

STRICT = kvm.Gates(
    journal="err",
    failed_units=True,
    core_dumps=True,
    allow_failed_units=[r"^app\.service "],
    allow_journal=[r"Failed to start app\.service"],
)


@pytest.mark.kvm(gates=STRICT)
def test_nothing_else_fails(machine: kvm.Guest) -> None:
    machine.run(["systemd-run", "--unit=app", "--wait", "false"], check=False)
    machine.wait_until(["systemctl", "is-failed", "app"])
