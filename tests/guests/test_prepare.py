"""Prepare steps in a real guest, whose login has to become root for them."""

from __future__ import annotations

import pytest

import pytest_kvm as kvm
from pytest_kvm.errors import PrepareFailed
from pytest_kvm.provision.prepare import run_steps


@kvm.guest(scope="module")
def prepared():
    return kvm.GuestSpec(memory="512MiB", vcpus=1, login="admin")


@pytest.fixture
def prepare(prepared):
    def prepare(*steps):
        run_steps(prepared.machine, kvm.GuestSpec(prepare=steps).prepare, on_step=lambda _step: None)

    return prepare


@pytest.fixture
def app(tmp_path):
    """A folder as a build leaves it."""
    folder = tmp_path / "app"
    (folder / "bin").mkdir(parents=True)
    (folder / "bin" / "tool").write_bytes(b"#!/bin/sh\nid -un\n")
    (folder / "bin" / "tool").chmod(0o750)
    (folder / "tool").symlink_to("bin/tool")
    return folder


def test_commands_run_as_root_in_order(prepared, prepare):
    prepare("id -un >/root/who && echo one >/root/order", ["sh", "-c", "echo 'two  words' >>/root/order"])
    assert prepared.run(["cat", "/root/who", "/root/order"], user="root").stdout == "root\none\ntwo  words\n"


def test_scripts_in_every_language(prepared, prepare, tmp_path):
    (tmp_path / "setup").write_text("#!/usr/bin/env python3\nprint('python', file=open('/root/a', 'w'))\n")
    prepare(
        kvm.Script(file=tmp_path / "setup"),
        kvm.Script("set -o pipefail; echo bash $0 >/root/b", interpreter="/bin/bash"),
        kvm.Script('cat >/root/c; ls -l "$0" >>/root/c'),
    )
    a, b, c = (prepared.run(["cat", f"/root/{name}"], user="root").stdout for name in "abc")
    assert a == "python\n"
    assert b.startswith("bash /tmp/")
    assert c.startswith("-rw------- 1 root root ")
    assert not prepared.run(["test", "-e", b.split()[1]], user="root", check=False).ok


def test_host_files_with_modes_and_owners(prepared, prepare, app, tmp_path):
    (tmp_path / "conf").write_text("listen = 1\n")
    prepare(
        kvm.HostFile(app, "/opt/app", owner="admin"),
        kvm.HostFile(tmp_path / "conf", "/etc/app/", mode=0o640, owner="root:admin"),
        ["/opt/app/tool"],
    )
    listing = prepared.run("stat -c '%a %U:%G %N' /opt/app/bin/tool /opt/app/tool /etc/app/conf", user="root")
    assert listing.stdout.splitlines() == [
        "750 admin:admin '/opt/app/bin/tool'",
        "777 admin:admin '/opt/app/tool' -> 'bin/tool'",
        "640 root:admin '/etc/app/conf'",
    ]


def test_the_step_that_fails_is_named_with_its_output(prepared, prepare):
    with pytest.raises(PrepareFailed) as caught:
        prepare("true", kvm.Script("echo looking; ls /nowhere"), "touch /root/never")
    assert "prepare step 2 of 3 (script `echo looking; ls /nowhere`): exit code 2" in caught.value.brief
    assert "looking" in caught.value.details
    assert "/nowhere" in caught.value.details
    assert not prepared.run(["test", "-e", "/root/never"], user="root", check=False).ok


def test_a_file_that_cannot_be_written_is_told(prepared, prepare, app):
    with pytest.raises(PrepareFailed, match=r"step 1 of 1 .* → /proc/app\): .*/proc/app"):
        prepare(kvm.HostFile(app, "/proc/app"))
