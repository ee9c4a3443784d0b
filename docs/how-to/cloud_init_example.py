"""What cloud-init has done before the first test runs."""

from __future__ import annotations

import pytest_kvm as kvm


def test_packages_are_there(web: kvm.Guest) -> None:
    assert web.run(["nginx", "-v"]).ok


def test_users_and_files_are_there(server: kvm.Guest) -> None:
    assert "systemd-journal" in server.run(["id", "-Gn", "alice"]).stdout.split()
    assert server.run(["cat", "/etc/app/app.conf"], user="alice").stdout == "listen = 8080\n"


def test_commands_have_run(server: kvm.Guest) -> None:
    assert server.run(["systemctl", "is-active", "app.service"]).ok
    assert server.run(["ls", "/var/tmp/a file; not two", "/run/early"]).ok


def test_names_and_time_zone(server: kvm.Guest) -> None:
    assert server.hostname == "server"
    assert server.run(["hostname", "--fqdn"]).stdout == "server.example.org\n"
    assert server.run(["date", "+%Z"]).stdout in {"CET\n", "CEST\n"}
