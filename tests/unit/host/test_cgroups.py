"""Limits of control groups, of both versions."""

from __future__ import annotations

import os
from types import SimpleNamespace

import pytest

from pytest_kvm.host import cgroups, pressure, resources

MIB = 1024**2
VERSION_1 = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
VERSION_2 = ("memory.max", "memory.current", "inactive_file")


class Machine:
    """Files like those of /sys/fs/cgroup and /proc/self/cgroup."""

    def __init__(self, folder):
        self.root = folder / "cgroup"
        self.own = folder / "own"
        self.root.mkdir()

    def is_in(self, *lines):
        self.own.write_text("".join(f"{line}\n" for line in lines))

    def limits(self, folder, files, *, limit, used=0, inactive=0):
        group = self.root / folder
        group.mkdir(parents=True, exist_ok=True)
        (group / files[0]).write_text(f"{limit}\n")
        (group / files[1]).write_text(f"{used}\n")
        (group / "memory.stat").write_text(f"active_file 7\n{files[2]} {inactive}\nanon 2\n")

    def memory(self):
        return list(cgroups.memory_groups(self.root, self.own))

    def cpus(self):
        return list(cgroups.cpu_quotas(self.root, self.own))


@pytest.fixture
def machine(tmp_path):
    return Machine(tmp_path)


@pytest.mark.parametrize(
    ("line", "top", "files"), [("0::", "", VERSION_2), ("4:memory:", "memory/", VERSION_1)]
)
def test_every_group_up_to_the_root_counts(machine, line, top, files):
    machine.is_in("7:pids:/", f"{line}/a/b")
    machine.limits(f"{top}a/b", files, limit=512 * MIB, used=200 * MIB, inactive=50 * MIB)
    machine.limits(f"{top}a", files, limit=900 * MIB, used=300 * MIB)
    assert machine.memory() == [(512 * MIB, 150 * MIB), (900 * MIB, 300 * MIB)]


def test_in_a_container_the_top_is_its_own_group(machine):
    machine.is_in("4:memory:/of/the/host")
    machine.limits("memory", VERSION_1, limit=512 * MIB, used=MIB)
    assert machine.memory() == [(512 * MIB, MIB)]


def test_a_group_without_a_limit_sets_none(machine):
    machine.is_in("0::/a")
    machine.limits("a", VERSION_2, limit="max")
    assert machine.memory() == []


@pytest.mark.parametrize("content", [None, "", "nonsense\n", "4:cpu,cpuacct:/a\n"])
def test_a_process_in_no_group_has_no_limits(machine, content):
    if content is not None:
        machine.own.write_text(content)
    machine.limits("a", VERSION_2, limit=MIB)
    assert machine.memory() == []
    assert machine.cpus() == []


def test_processors_of_version_2(machine):
    machine.is_in("0::/a/b")
    for folder, quota in (("a/b", "max 100000"), ("a", "150000 100000")):
        (machine.root / folder).mkdir(parents=True, exist_ok=True)
        (machine.root / folder / "cpu.max").write_text(quota)
    assert machine.cpus() == [1.5]


@pytest.mark.parametrize(("quota", "cpus"), [("-1", []), ("300000", [3.0])])
def test_processors_of_version_1(machine, quota, cpus):
    machine.is_in("3:cpu,cpuacct:/")
    (machine.root / "cpu").mkdir()
    (machine.root / "cpu/cpu.cfs_quota_us").write_text(quota)
    (machine.root / "cpu/cpu.cfs_period_us").write_text("100000")
    assert machine.cpus() == cpus


def test_both_versions_beside_each_other(machine):
    machine.is_in("4:memory:/a", "0::/b")
    machine.limits("memory/a", VERSION_1, limit=MIB)
    (machine.root / "unified/b").mkdir(parents=True)
    assert machine.memory() == [(MIB, 0)]
    groups = list(cgroups.own_groups(machine.root, machine.own))
    assert groups == [machine.root / "unified/b", machine.root / "unified"]


def test_the_lowest_limit_counts(monkeypatch):
    monkeypatch.setattr(
        resources.psutil, "virtual_memory", lambda: SimpleNamespace(available=8192 * MIB, total=9000 * MIB)
    )
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: set(range(8)))
    groups = []
    quotas = []
    monkeypatch.setattr(resources, "memory_groups", lambda: groups)
    monkeypatch.setattr(resources, "cpu_quotas", lambda: quotas)
    assert resources.memory_available_mib() == 8192
    assert resources.memory_total_mib() == 9000
    assert resources.cpus_available() == 8
    groups.append(cgroups.MemoryGroup(512 * MIB, 128 * MIB))
    quotas.append(1.5)
    assert resources.memory_available_mib() == 384
    assert resources.memory_total_mib() == 512
    assert resources.cpus_available() == 2
    groups.append(cgroups.MemoryGroup(512 * MIB, 600 * MIB))
    assert resources.memory_available_mib() == 0


def test_memory_that_a_process_has_touched():
    before = resources.memory_touched_mib(os.getpid())
    block = b"x" * (64 * MIB)
    assert 60 <= resources.memory_touched_mib(os.getpid()) - before <= 70
    del block
    assert resources.memory_touched_mib(2**22 + 1) == 0, "no such process"


def test_the_highest_pressure_counts(tmp_path, monkeypatch):
    monkeypatch.setattr(pressure, "own_groups", lambda: [tmp_path])
    whole = tmp_path / "whole"
    assert pressure.memory_pressure(whole) == 0, "a kernel that does not tell"
    whole.write_text("some avg10=1.50 avg60=9.00 avg300=9.00 total=1\nfull avg10=9.00 avg60=0.00\n")
    assert pressure.memory_pressure(whole) == 1.5
    (tmp_path / "memory.pressure").write_text("some avg10=12.25 avg60=0.00 avg300=0.00 total=1\n")
    assert pressure.memory_pressure(whole) == 12.25
