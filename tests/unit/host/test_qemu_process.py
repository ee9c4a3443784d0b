from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from pytest_kvm.host.qemu_process import HostProcess, PidfileWatch, is_subreaper
from pytest_kvm.waiting import NotYet, wait_until

SLEEP = [sys.executable, "-c", "import time; time.sleep(600)"]


def daemon(pidfile, script):
    """Start a grandchild that notes its pid, as libvirt starts QEMU."""
    code = f"""
import os, sys
if os.fork():
    os._exit(0)
with open({str(pidfile)!r}, "w") as file:
    file.write(str(os.getpid()))
{script}
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def is_gone(pid):
    return not Path(f"/proc/{pid}").exists()


def eventually(look):
    """Return what ``look`` finds once it finds something."""

    def found():
        return look() or _not_yet()

    def _not_yet():
        raise NotYet("nothing")

    return wait_until(found, describe="a process", timeout=10, every=0.01)


@pytest.fixture
def child(tmp_path):
    watch = PidfileWatch(tmp_path, ("*.pid",))
    with watch.watching():
        daemon(tmp_path / "a.pid", "import time; time.sleep(600)")
        found = eventually(lambda: watch.find_child("a.pid"))
    yield found
    found.kill()
    assert found.wait(10)


def test_a_daemonised_process_becomes_our_child(child):
    assert child.is_our_child
    assert child.how_it_ended() == "is still running"


def test_a_killed_child_is_collected_at_once(child):
    child.kill()
    assert child.wait(10)
    assert child.how_it_ended() == "was killed by signal 9 (Killed)"
    assert is_gone(child.pid)
    child.kill()


def test_a_bus_error_says_what_it_means(child):
    os.kill(child.pid, signal.SIGBUS)
    assert child.wait(10)
    assert child.how_it_ended().endswith(" (Bus error): the disk that holds its memory is full, perhaps")


def test_a_start_that_fails_is_collected_while_it_is_watched(tmp_path):
    watch = PidfileWatch(tmp_path, ("*.pid",))
    pidfile = tmp_path / "a.pid"
    with watch.watching():
        daemon(pidfile, "os._exit(3)")
        pid = eventually(lambda: pidfile.exists() and int(pidfile.read_text() or 0))
        assert eventually(lambda: is_gone(pid))


def test_orphans_are_ours_only_while_a_start_is_watched(tmp_path):
    watch = PidfileWatch(tmp_path, ("*.pid",))
    assert not is_subreaper()
    with watch.watching(), watch.watching():
        assert is_subreaper()
    assert not is_subreaper()
    orphan = int(
        subprocess.run(["sh", "-c", "sleep 600 >&- 2>&- & echo $!"], capture_output=True, check=True).stdout
    )
    process = psutil.Process(orphan)
    try:
        assert process.ppid() != os.getpid()
    finally:
        process.kill()


LEAVES_A_DAEMON = """
import os, sys
if os.fork():
    os._exit(0)
os.setsid()
if pid := os.fork():
    print(pid, flush=True)
    os._exit(0)
os.close(1)
sys.stdin.read()
"""


def test_a_daemon_that_is_left_while_a_start_is_watched_is_collected_when_it_ends(tmp_path):
    watch = PidfileWatch(tmp_path, ("*.pid",))
    lasts, ends = os.pipe()
    with watch.watching():
        argv = [sys.executable, "-c", LEAVES_A_DAEMON]
        left = subprocess.run(argv, stdin=lasts, stdout=subprocess.PIPE, check=True)
        daemon = psutil.Process(int(left.stdout))
        assert eventually(lambda: daemon.ppid() == os.getpid())
    assert daemon.is_running()
    os.close(ends)
    os.close(lasts)
    assert eventually(lambda: is_gone(daemon.pid))


def test_the_end_of_a_process_that_leaves_one_behind_is_left_to_the_test(tmp_path):
    watch = PidfileWatch(tmp_path, ("*.pid",))
    lasts, ends = os.pipe()
    with watch.watching():
        argv = ["sh", "-c", "exec 3<&0; cat <&3 >/dev/null & echo $!; exit 3"]
        own = subprocess.Popen(argv, stdin=lasts, stdout=subprocess.PIPE, start_new_session=True)
        with own.stdout:
            left = psutil.Process(int(own.stdout.readline()))
        assert eventually(lambda: left.ppid() == os.getpid())
    os.close(ends)
    os.close(lasts)
    assert eventually(lambda: is_gone(left.pid))
    assert own.wait() == 3


@pytest.mark.parametrize("has_session", [False, True])
def test_the_ends_of_a_tests_own_processes_are_left_to_the_test(tmp_path, has_session):
    watch = PidfileWatch(tmp_path, ("*.pid",))
    with watch.watching():
        own = subprocess.Popen(["sh", "-c", "exit 3"], start_new_session=has_session)
        os.waitid(os.P_PID, own.pid, os.WEXITED | os.WNOWAIT)
    with watch.watching():
        pass
    assert own.wait() == 3


def test_a_process_of_another_parent_is_watched_but_not_adopted(tmp_path):
    with subprocess.Popen([sys.executable, "-c", f"import subprocess; subprocess.run({SLEEP})"]) as between:
        grandchild = eventually(psutil.Process(between.pid).children)[0].pid
        (tmp_path / "a.pid").write_text(str(grandchild))
        assert PidfileWatch(tmp_path, ("*.pid",)).find_child("a.pid") is None
        process = HostProcess(grandchild)
        assert not process.is_our_child
        process.kill()
        assert process.wait(10)
        assert process.how_it_ended() == "ended"


@pytest.mark.parametrize("text", ["", "nonsense", "999999999"])
def test_a_pidfile_of_nobody_is_passed_over(tmp_path, text):
    (tmp_path / "a.pid").write_text(text)
    assert PidfileWatch(tmp_path, ("*.pid",)).find_child("a.pid") is None


def test_whether_a_signal_has_stopped_a_process(child):
    assert not child.is_stopped
    os.kill(child.pid, signal.SIGSTOP)
    eventually(lambda: child.is_stopped)
    os.kill(child.pid, signal.SIGCONT)
    eventually(lambda: not child.is_stopped)
    child.kill()
    assert child.wait(10)
    assert (child.is_stopped, child.bytes_moved) == (False, None)


def test_what_a_process_has_read_and_written():
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as cat:
        process = HostProcess(cat.pid, began_session=False)
        before = process.bytes_moved
        cat.stdin.write(b"x" * 50_000)
        cat.stdin.flush()
        assert len(cat.stdout.read(50_000)) == 50_000
        eventually(lambda: process.bytes_moved - before >= 100_000)  # counted after the write has ended
        assert process.bytes_moved - before < 120_000, "what it reads while it starts is little"
        process.kill()


def test_a_process_that_does_not_exist():
    with pytest.raises(ProcessLookupError):
        HostProcess(999_999_999)
