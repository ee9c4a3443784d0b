"""Guests that are reset, and tests that pass, where templates are off, are snapshots or cannot be kept."""

from __future__ import annotations

import re
import shlex

import pytest

from tests.own_disk import on_small_disk

FULL_WHEN_FREEZING = """
import os, shutil
from pytest_kvm.hypervisor import device_state

save = device_state.save


def full(domain, target):
    with open({folder!r} + "/filler", "wb") as file:
        os.posix_fallocate(file.fileno(), 0, shutil.disk_usage({folder!r}).free)
    save(domain, target)


device_state.save = full
"""


FULL_WHEN_BOOTING = """
from contextlib import suppress
from pytest_kvm.provision import run_templates

make_ready = run_templates.make_ready


def full(machine, request, **more):
    # Not by posix_fallocate(), which takes nothing if the guest takes some of it meanwhile.
    with suppress(OSError), open({folder!r} + "/filler", "wb", buffering=0) as file:
        while True:
            file.write(bytes(64 * 1024))
    make_ready(machine, request, **more)


run_templates.make_ready = full
"""


@pytest.fixture(scope="module")
def by_snapshots(suite):
    """A run of it that has kept a template."""
    return suite.run("--kvm-clone=snapshot", "--kvm-pool=0")


def test_snapshots_do_the_same(suite, by_snapshots):
    assert by_snapshots.is_fine(), by_snapshots.output
    assert "clone snapshot " in by_snapshots.ways[0]["kvm_guest_vm"]
    assert by_snapshots.ways[1]["kvm_reset_vm"].startswith("snapshot ")
    suite.check_nothing_runs()
    suite.cache.check_no_litter()


def test_without_templates_resets_work_as_well(suite, by_snapshots):
    (kept,) = suite.cache.entries
    cold = suite.run("--kvm-cache=off")
    assert cold.is_fine(), cold.output
    assert cold.ways[0]["kvm_guest_vm"].endswith("(the boot cache is off)")
    assert cold.ways[1]["kvm_reset_vm"].startswith("load ")
    assert suite.cache.entries == [kept]


def test_a_disk_that_is_full_when_freezing_costs_a_boot(new_suite):
    suite = new_suite()
    show = f'"$@"; code=$?; find {shlex.quote(str(suite.cache.templates))}; exit $code'
    result = suite.run(
        sabotage=FULL_WHEN_FREEZING.format(folder=str(suite.cache.templates)),
        within=[*on_small_disk(suite.cache.templates, "size=1g"), "sh", "-c", show, "sh"],
    )
    assert result.is_fine(), result.output
    assert result.ways[0]["kvm_guest_vm"].startswith("boot cold ")
    assert "cow: " in result.ways[0]["kvm_guest_vm"]
    assert "/filler" in result.output
    assert f"{suite.cache.templates}/entries/" not in result.output
    assert f"{suite.cache.templates}/current/" not in result.output
    suite.check_nothing_runs()


def test_a_disk_that_is_full_when_booting_is_named(new_suite):
    suite = new_suite()
    result = suite.run(
        "--kvm-cache-ram=disk",
        sabotage=FULL_WHEN_BOOTING.format(folder=str(suite.cache.templates)),
        within=on_small_disk(suite.cache.templates, "size=700m"),
    )
    assert " 2 errors in " in result.output, result.output
    # QEMU meets it in the file of a disk or in that of the memory, whichever it needs first.
    assert re.search(r": the (host's disk|disk that holds its memory) is full", result.output), result.output
    suite.check_nothing_runs()
