"""A boot that ends by a fault of QEMU's emulation is tried a second time; on real guests."""

from __future__ import annotations

import pytest

# The first machine is stopped when it is switched on, and its console says what such a kernel says.
PANICS = """
from pytest_kvm.provision import prepare

wait_until_ready, panicked = prepare.wait_until_ready, []


def panic(machine, **more):
    if len(panicked) < {times}:
        panicked.append(machine)
        machine.domain.suspend()
        with machine.console.log.open("ab") as log:
            log.write(b"\\n[ 4.2] Oops: {kind}: 0000 [#1]\\n[ 4.3] Kernel panic - not syncing: Fatal\\n\\n")
    wait_until_ready(machine, **more)


prepare.wait_until_ready = panic
"""


@pytest.fixture(scope="module")
def suite(new_suite):
    return new_suite()


@pytest.mark.parametrize("cache", ["use", "off"])
def test_a_lost_race_is_no_error(suite, cache):
    result = suite.run(
        f"--kvm-cache={cache}", "--log-cli-level=WARNING", sabotage=PANICS.format(kind="int3", times=1)
    )
    assert result.is_fine(), result.output
    assert "its first boot ended by a fault of QEMU's emulation" in result.output
    assert "it is booted again" in result.output
    assert "1 cold boot " in result.summary
    suite.cache.check_no_litter()


def test_another_panic_is_one(suite):
    result = suite.run("--kvm-cache=off", sabotage=PANICS.format(kind="0002", times=1))
    assert "KernelPanicked: vm: the kernel panicked" in result.output
    assert result.exit_code == 1


def test_a_second_one_is_an_error(suite):
    result = suite.run("--kvm-cache=refresh", sabotage=PANICS.format(kind="int3", times=2))
    assert "KernelPanicked: vm: the kernel panicked" in result.output
    assert result.exit_code == 1
    suite.check_nothing_runs()
    suite.cache.check_no_litter()
