"""A guest boots once in its life, whatever happens to the runs and to the cache; on real guests."""

from __future__ import annotations

import os
import signal
from dataclasses import replace

import pytest

from pytest_kvm.boot_cache import template_files
from pytest_kvm.host import folder_marker

KILLS_QEMU_ONCE = """
import os, signal
from pytest_kvm.hypervisor.domain import LibvirtDomain

load_state = LibvirtDomain.load_state


def killed(domain, source):
    LibvirtDomain.load_state = load_state
    os.kill(domain.pid, signal.SIGKILL)
    load_state(domain, source)


LibvirtDomain.load_state = killed
"""

# The n-th state that a process saves or loads is the last thing it does.
KILLED_AT = """
import os, signal
from pytest_kvm.hypervisor import device_state

wait_for_job, done = device_state._wait_for_job, []


def killed(domain, *, doing):
    done.append(doing)
    if len(done) == {}:
        print("KILLED WHILE", doing, flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
    wait_for_job(domain, doing=doing)


device_state._wait_for_job = killed
"""

NO_MEMORY_FOR_TEMPLATES = """
from pytest_kvm.boot_cache import ram_file

ram_file._KEPT_FREE = 1.0
"""


@pytest.fixture(scope="module")
def killed_when_freezing(suite):
    """A run that was killed while it froze the cache's first template."""
    result = suite.run("-s", "--kvm-cache-ram=tmpfs", sabotage=KILLED_AT.format(1))
    assert "KILLED WHILE saving the state" in result.output
    return result


@pytest.fixture(scope="module")
def litter(suite, killed_when_freezing):
    """What it has left in the cache."""
    suite.check_nothing_runs()
    (entry,) = suite.cache.entries
    return entry


@pytest.fixture(scope="module")
def first(suite, litter):
    """Two workers' run, the first one that finished."""
    return suite.run("-n", "2", "--dist", "each", "--kvm-cache-ram=tmpfs")


def test_a_run_that_is_killed_when_freezing_leaves_nothing_behind(suite, killed_when_freezing, litter, first):
    assert killed_when_freezing.exit_code == -signal.SIGKILL
    assert first.is_fine(tests=4), first.output
    suite.check_nothing_runs()
    assert litter not in suite.cache.entries
    suite.cache.check_no_litter()


def test_two_workers_boot_once(first):
    assert first.summary.startswith("kvm: 2 guests, 1 cold boot "), first.output
    assert "2 clones" in first.summary
    assert len(first.made) == 1
    assert len(first.ways) == 4


def test_the_next_run_boots_nothing_and_prepares_nothing(suite, first):
    half_made = suite.cache.templates / "entries" / f"{'5ca1ab1e' * 8}.0ddba110"
    folder_marker.make(half_made)
    again = suite.run("--kvm-pool=1")
    assert not half_made.exists(), "a run begins by removing what a killed one has left"
    assert again.is_fine(), again.output
    assert again.summary.startswith("kvm: 1 guest, 1 clone "), again.output
    assert again.made == first.made
    assert again.ways[0]["kvm_guest_vm"].startswith("clone cow ")
    assert again.ways[1]["kvm_reset_vm"].startswith("pool ")


@pytest.mark.parametrize(("doing", "nth"), [("start", 1), ("reset", 2)])
def test_a_run_that_is_killed_leaves_nothing_behind(suite, first, doing, nth):
    killed = suite.run("-s", "--kvm-pool=0", sabotage=KILLED_AT.format(nth))
    assert killed.exit_code == -signal.SIGKILL
    assert "KILLED WHILE loading the state" in killed.output
    assert ("test_inner.py::test_a PASSED" in killed.output) == (doing == "reset")
    suite.check_nothing_runs()
    suite.cache.check_no_litter()
    next_one = suite.run("--kvm-pool=0")
    assert next_one.is_fine(), next_one.output
    assert next_one.made == first.made
    assert next_one.ways[1]["kvm_reset_vm"].startswith("cow ")


def test_a_qemu_that_is_killed_costs_another_clone_and_no_template(suite, first):
    before = suite.cache.entries
    result = suite.run("--kvm-pool=0", sabotage=KILLS_QEMU_ONCE)
    assert result.is_fine(), result.output
    assert "its clone failed, trying another: the state of " in result.output
    assert result.made == first.made
    assert suite.cache.entries == before


def truncated(folder):
    os.truncate(folder / "state", (folder / "state").stat().st_size // 2)


def falsified(folder):
    """Damage the state and have the manifest agree: only QEMU can find out."""
    with (folder / "state").open("r+b") as file:
        file.write(b"not QEMU's")
    manifest = template_files.read(folder, folder.name.partition(".")[0])
    files = {**manifest.files, "state": template_files.record_of(folder / "state")}
    template_files.write(folder, replace(manifest, files=files))


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (truncated, "its template is dropped: state has "),
        (falsified, "its template is dropped: the state of "),
    ],
    ids=["truncated", "falsified"],
)
def test_a_damaged_template_is_told_and_made_again(suite, first, damage, told):
    (damaged,) = suite.cache.entries
    damage(damaged)
    repaired = suite.run()
    assert repaired.is_fine(), repaired.output
    assert told in repaired.output
    assert repaired.summary.startswith("kvm: 1 guest, 1 cold boot "), repaired.output
    assert damaged not in suite.cache.entries
    suite.cache.check_no_litter()


def test_refresh_makes_it_again(suite, first):
    (old,) = suite.cache.entries
    refreshed = suite.run("--kvm-cache=refresh", "--kvm-cache-ram=tmpfs", sabotage=NO_MEMORY_FOR_TEMPLATES)
    assert refreshed.is_fine(), refreshed.output
    assert refreshed.summary.startswith("kvm: 1 guest, 1 cold boot "), refreshed.output
    assert refreshed.made.isdisjoint(first.made)
    assert len(suite.cache.entries) == 1
    assert old not in suite.cache.entries
    assert "its RAM file is on disk: " in refreshed.ways[0]["kvm_guest_vm"]
