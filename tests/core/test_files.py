"""Files between host and a real guest."""

from __future__ import annotations

import hashlib
import os
import stat

import pytest

from pytest_kvm.errors import RemoteFileError


@pytest.fixture
def there(guest):
    """A new folder in the guest."""
    path = guest.run(["mktemp", "-d", "/var/tmp/kvm test.XXXXXX"]).stdout.strip()
    yield path
    guest.run(["rm", "-rf", path])


def test_text_goes_there_and_back(guest, there):
    path = f"{there}/new/it's\nodd"
    guest.write_text(path, "grüße\n", mode=0o640, owner="nobody:daemon")
    assert guest.read_text(path) == "grüße\n"
    told = guest.run(["stat", "-c", "%a %U:%G", path]).stdout
    assert told == "640 nobody:daemon\n"
    guest.write_text(path, "more\n", append=True)
    assert guest.read_text(path) == "grüße\nmore\n"


def test_a_service_can_be_configured_and_the_kernel_told(guest):
    guest.write_text("/proc/sys/kernel/panic", "7\n")
    assert guest.read_text("/proc/sys/kernel/panic") == "7\n"
    guest.write_text("/proc/sys/kernel/panic", "0\n")


def test_a_large_file_stays_the_same(guest, there, tmp_path):
    here = tmp_path / "here"
    here.write_bytes(os.urandom(20 * 1024**2))
    here.chmod(0o751)
    guest.put(here, f"{there}/")
    digest = hashlib.sha256(here.read_bytes()).hexdigest()
    assert guest.run(["sha256sum", f"{there}/here"]).stdout.split()[0] == digest
    back = guest.get(f"{there}/here", tmp_path / "back")
    assert back.read_bytes() == here.read_bytes()
    assert stat.S_IMODE(back.stat().st_mode) == 0o751


def test_a_tree_keeps_names_modes_and_links(guest, there, tmp_path):
    tree = tmp_path / "tree"
    (tree / "empty").mkdir(parents=True)
    (tree / "a b").mkdir(mode=0o711)
    (tree / "a b" / "x\ny").write_text("1")
    (tree / "ünï").write_text("2")
    (tree / "run").write_text("#!/bin/sh\necho ran\n")
    (tree / "run").chmod(0o755)
    (tree / "a b" / "link").symlink_to("../run")
    guest.put(tree, f"{there}/tree", owner="nobody")
    assert guest.run([f"{there}/tree/a b/link"]).stdout == "ran\n"
    assert guest.run(["stat", "-c", "%U %a", f"{there}/tree/a b"]).stdout == "nobody 711\n"
    guest.get(f"{there}/tree", tmp_path / "back")
    paths = {str(path.relative_to(tree)) for path in tree.rglob("*")}
    assert {str(path.relative_to(tmp_path / "back")) for path in (tmp_path / "back").rglob("*")} == paths
    assert str((tmp_path / "back" / "a b" / "link").readlink()) == "../run"


def test_what_a_guest_cannot_send_is_left_out(guest, there, tmp_path, caplog):
    guest.run("mkfifo pipe; mknod dev c 1 3; ln -s /etc/passwd out; ln -s ../.. up; echo x >f", cwd=there)
    guest.get(there, tmp_path / "back")
    assert [path.name for path in (tmp_path / "back").iterdir()] == ["f"]
    assert caplog.text.count("left out") == 4


@pytest.fixture
def noisy(guest):
    """A guest whose shells print when they start, for the length of one test."""
    with guest.savepoint():
        guest.run(
            "{ echo 'echo HELLO; echo HELLO >&2'; cat /root/.bashrc; } >/root/new; mv /root/new /root/.bashrc"
        )
        guest.run("echo BASH_ENV=/etc/noise >>/etc/environment; echo 'echo NOISE' >/etc/noise")
        guest.run("cp /etc/noise /etc/profile.d/noise.sh; cp /etc/noise /etc/bash.bashrc")
        guest.machine.shell.close()  # who logs in finds all of that
        yield guest


def test_start_up_files_that_print_are_not_what_a_command_says(noisy):
    assert noisy.run(". /root/.bashrc").stdout.startswith("HELLO\n")
    for user in (None, "nobody"):
        said = noisy.run("echo out; echo err >&2", user=user)
        assert said.stdout == "out\n"
        assert said.stderr.endswith("err\n")
        assert noisy.run(["echo", "out"], user=user).stdout == "out\n"
    assert noisy.kernel == noisy.read_text("/proc/sys/kernel/osrelease").strip()
    with noisy.start("echo ready; sleep 60") as process:
        assert next(process.lines()) == "ready"
    noisy.wait_for_unit("ssh.service")


def test_start_up_files_that_print_change_no_file(there, noisy, tmp_path):
    assert {"HELLO", "NOISE"} <= set(noisy.run(["bash", "-c", "true"]).stdout.split())
    for owner in (None, "nobody", "nobody:daemon"):
        noisy.write_text(f"{there}/file", "payload", owner=owner)
        assert noisy.read_text(f"{there}/file") == "payload"
    tree = tmp_path / "tree"
    tree.mkdir()
    (tree / "a").write_bytes(b"\0\xff")
    noisy.put(tree, f"{there}/tree", owner="nobody")
    noisy.get(f"{there}/tree", tmp_path / "back")
    assert (tmp_path / "back" / "a").read_bytes() == b"\0\xff"


def test_failures_say_what_and_where(guest, there, tmp_path):
    with pytest.raises(RemoteFileError, match="No such file or directory"):
        guest.get(f"{there}/nothing", tmp_path / "x")
    with pytest.raises(RemoteFileError, match="more than 5 bytes"):
        guest.get("/etc/passwd", tmp_path / "x", max_bytes=5)
    assert not (tmp_path / "x").exists()


def test_a_full_disk_is_named_and_leaves_nothing(guest, there):
    guest.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", there])
    try:
        with pytest.raises(RemoteFileError, match="No space left on device"):
            guest.write_bytes(f"{there}/f", b"x" * 2 * 1024**2)
        assert guest.run(["ls", "-A", there]).stdout == ""
    finally:
        guest.run(["umount", there])
