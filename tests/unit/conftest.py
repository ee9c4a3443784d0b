"""Tests without guests."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pytest_kvm.machine.machine import Machine
from pytest_kvm.options import OPTIONS
from tests.fakes import FakeDomain, FakeShell, fake_machine


@pytest.fixture(autouse=True)
def _no_options_from_outside(monkeypatch):
    """Take no option from the environment: what tests are made for holds for anybody who runs them."""
    for option in OPTIONS:
        monkeypatch.delenv(option.variable, raising=False)


@pytest.fixture
def domain() -> FakeDomain:
    return FakeDomain()


@pytest.fixture
def shell() -> Iterator[FakeShell]:
    shell = FakeShell()
    yield shell
    shell.close()


@pytest.fixture
def machine(tmp_path: Path, domain: FakeDomain, shell: FakeShell) -> Machine:
    return fake_machine(tmp_path, domain=domain, shell=shell)


@pytest.fixture
def printed(machine: Machine) -> Callable[[str | bytes], None]:
    """Let the guest print on its console."""

    def append(text: str | bytes) -> None:
        with machine.console.log.open("ab") as log:
            log.write(text if isinstance(text, bytes) else text.encode())

    return append
