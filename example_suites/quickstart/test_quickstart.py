"""The shortest suite that shows what a guest is for."""

from __future__ import annotations

import pytest_kvm as kvm


def test_runs_a_real_kernel(machine: kvm.Guest):
    assert machine.run(["uname", "-s"]).stdout == "Linux\n"
    assert machine.hostname == "quickstart"


def test_init_is_systemd(machine: kvm.Guest):
    assert machine.run(["cat", "/proc/1/comm"]).stdout == "systemd\n"
    machine.wait_for_unit("ssh.service")


def test_files_go_in_and_out(machine: kvm.Guest, tmp_path):
    machine.write_text("/root/greeting", "hello from the host\n", mode=0o600)
    machine.get("/root/greeting", tmp_path / "greeting")
    assert (tmp_path / "greeting").read_text() == "hello from the host\n"


def test_each_test_finds_the_guest_as_it_was(machine: kvm.Guest):
    assert not machine.run(["test", "-e", "/root/greeting"], check=False).ok


def test_a_reboot_is_a_real_one(machine: kvm.Guest):
    before = machine.read_text("/proc/sys/kernel/random/boot_id")
    machine.reboot()
    assert machine.read_text("/proc/sys/kernel/random/boot_id") != before
