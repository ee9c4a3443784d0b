"""A test that fails, for the tutorial to read its report."""

from __future__ import annotations

import pytest

import pytest_kvm as kvm


@pytest.mark.xfail(raises=kvm.CommandFailed, strict=True, reason="the tutorial shows how it fails")
def test_starts_the_wrong_service(machine: kvm.Guest) -> None:
    machine.run(["systemctl", "start", "apache2.service"])
