"""What cloud-init has done before the first test runs."""

from __future__ import annotations

import pytest_kvm as kvm


def test_packages_are_there(machine: kvm.Guest) -> None:
    assert machine.run(["nginx", "-v"]).ok


def test_users_and_files_are_there(machine: kvm.Guest) -> None:
    assert "systemd-journal" in machine.run(["id", "-Gn", "alice"]).stdout.split()
    assert machine.run(["cat", "/etc/app/app.conf"], user="alice").stdout == "listen = 8080\n"


def test_commands_have_run(machine: kvm.Guest) -> None:
    assert machine.read_text("/var/tmp/state") == "provisioned\n"
    assert machine.run(["ls", "/var/tmp/a file", "/run/early"]).ok


def test_names_and_time_zone(machine: kvm.Guest) -> None:
    assert machine.hostname == "machine"
    assert machine.run(["date", "+%Z"]).stdout in {"CET\n", "CEST\n"}
