"""Move files between host and guest."""

from __future__ import annotations

from pathlib import Path

import pytest

import pytest_kvm as kvm


def test_text_is_written_and_read(machine: kvm.Guest) -> None:
    machine.write_text("/srv/app/motd", "hello\n", mode=0o600, owner="www-data:www-data")
    machine.write_text("/srv/app/motd", "again\n", append=True)
    assert machine.read_text("/srv/app/motd") == "hello\nagain\n"
    assert machine.run(["stat", "-c", "%U %a", "/srv/app/motd"]).stdout == "www-data 600\n"


def test_a_file_goes_in_and_comes_out(machine: kvm.Guest, tmp_path: Path) -> None:
    (tmp_path / "tool").write_bytes(b"#!/bin/sh\necho works\n")
    machine.put(tmp_path / "tool", "/usr/local/bin/tool", mode=0o755)
    assert machine.run(["tool"]).stdout == "works\n"

    fetched = machine.get("/etc/os-release", tmp_path / "os-release")
    assert "Debian" in fetched.read_text()


def test_a_folder_goes_in_and_comes_out(machine: kvm.Guest, tmp_path: Path) -> None:
    (tmp_path / "site" / "css").mkdir(parents=True)
    (tmp_path / "site" / "index.html").write_text("<h1>hello</h1>\n")
    (tmp_path / "site" / "css" / "site.css").write_text("h1 { color: green }\n")
    machine.put(tmp_path / "site", "/srv/site")
    assert machine.run("cd /srv/site && find -type f | sort").stdout == "./css/site.css\n./index.html\n"

    machine.get("/srv/site", tmp_path / "copy")
    assert (tmp_path / "copy" / "css" / "site.css").read_text() == "h1 { color: green }\n"


def test_a_missing_file_is_named(machine: kvm.Guest) -> None:
    with pytest.raises(kvm.RemoteFileMissing, match="/etc/nothing"):
        machine.read_text("/etc/nothing")
