"""The tests that :mod:`bench.warm_start` runs in a pytest process of their own.

They note when things happened by the monotonic clock, which all processes of a
machine share, in the file that ``BENCH_MARKS`` names.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import pytest_kvm as kvm

Marks = dict[str, float]


@pytest.fixture
def marks() -> Iterator[Marks]:
    """What happened when; its end is the end of the guest's teardown."""
    marks: Marks = {}
    yield marks
    marks["removed"] = time.monotonic()
    Path(os.environ["BENCH_MARKS"]).write_text(json.dumps(marks))


@kvm.guest
def vm(marks: Marks) -> kvm.GuestSpec:
    """Ask for the guest."""
    marks["asked"] = time.monotonic()
    return kvm.GuestSpec(memory="512MiB", vcpus=1)


@pytest.fixture
def used(vm: kvm.Guest, marks: Marks) -> Iterator[kvm.Guest]:
    """Note when the test is through with the guest, just before that is removed."""
    yield vm
    marks["done"] = time.monotonic()


def test_agent(used: kvm.Guest, marks: Marks) -> None:
    """Ask the agent first."""
    used.agent.ping()
    marks["answered"] = time.monotonic()


def test_ssh(used: kvm.Guest, marks: Marks) -> None:
    """Run a command first."""
    used.run(["true"])
    marks["answered"] = time.monotonic()
