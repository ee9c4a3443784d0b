"""Take a guest back to an earlier point."""

from __future__ import annotations

import pytest

import pytest_kvm as kvm


def test_each_attempt_begins_at_the_same_point(web: kvm.Guest) -> None:
    for damage in ("rm /etc/nginx/nginx.conf", "echo nonsense >/etc/nginx/nginx.conf"):
        with web.savepoint():
            web.run(damage)
            assert not web.run(["nginx", "-t"], check=False).ok
    assert web.run(["nginx", "-t"]).ok


def test_back_and_forth(machine: kvm.Guest) -> None:
    fresh = machine.savepoint()
    machine.write_text("/etc/release", "1\n")
    installed = machine.savepoint("after the installation")
    machine.run(["rm", "/etc/release"])
    installed.restore()
    assert machine.read_text("/etc/release") == "1\n"
    fresh.restore()
    machine.wait_for_file("/etc/release", absent=True)
    installed.drop()
    fresh.drop()


def test_what_is_open_is_named(machine: kvm.Guest) -> None:
    with machine.forward(80), pytest.raises(kvm.KvmError, match="to port 80"):
        machine.savepoint()
