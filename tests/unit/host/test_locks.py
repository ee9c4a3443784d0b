from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
from contextlib import contextmanager

import pytest

from pytest_kvm.errors import NoCapacity
from pytest_kvm.host import locks
from tests.conftest import ROOT

_HOLD = textwrap.dedent(
    """
    import pathlib, sys
    from pytest_kvm.host import locks
    with locks.exclusive(pathlib.Path(sys.argv[1]), describe="building debian-13", timeout=10):
        print("held", flush=True)
        sys.stdin.read()
    """
)


@pytest.fixture
def lock(tmp_path):
    return tmp_path / "folder" / "image.lock"


@pytest.fixture
def other_process(lock):
    """Another process that holds the lock until its input ends."""
    process = subprocess.Popen(
        [sys.executable, "-c", _HOLD, lock],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=ROOT,
    )
    assert process.stdout.readline() == b"held\n"
    yield process
    process.kill()
    process.wait()
    process.stdin.close()
    process.stdout.close()


def test_a_free_lock_is_taken_without_waiting(lock):
    told: list[str] = []
    with locks.exclusive(lock, describe="testing", timeout=1, on_wait=told.append):
        assert locks.holder(lock) == f"pid {os.getpid()}, testing"
    assert told == []
    assert locks.holder(lock) == "another process"


def test_a_waiter_is_told_once_who_holds_it(lock, other_process):
    told: list[str] = []

    def release(holder: str) -> None:
        told.append(holder)
        other_process.stdin.close()

    with locks.exclusive(lock, describe="testing", timeout=10, on_wait=release):
        pass
    assert told == [f"pid {other_process.pid}, building debian-13"]


def test_running_out_of_time_names_the_holder(lock, other_process):
    with (
        pytest.raises(NoCapacity, match=f"held by pid {other_process.pid}, building debian-13") as failure,
        locks.exclusive(lock, describe="testing", timeout=0.3),
    ):
        pass
    assert failure.value.resolution
    assert locks.holder(lock).startswith(f"pid {other_process.pid}")


def test_a_full_disk_keeps_nobody_from_a_lock(lock):
    lock.parent.mkdir()
    note = lock.with_name(f"{lock.name}.holder")
    note.symlink_to("/dev/full")
    with locks.exclusive(lock, describe="making room", timeout=1):
        assert locks.try_exclusive(lock) is None
    assert not note.is_symlink()


def test_a_killed_holder_lets_go(lock, other_process):
    other_process.send_signal(signal.SIGKILL)
    with locks.exclusive(lock, describe="testing", timeout=10):
        assert locks.holder(lock) == f"pid {os.getpid()}, testing"


def test_the_note_of_a_killed_holder_is_found_and_removed(lock, other_process):
    assert locks.of_killed_holders(lock.parent) == [], "it lives"
    with pytest.raises(NoCapacity):
        locks.forget_killed_holder(lock)
    other_process.kill()
    other_process.wait()
    assert locks.of_killed_holders(lock.parent) == [lock]
    assert locks.holder(lock).startswith(f"pid {other_process.pid}"), "nobody has removed it by looking"
    locks.forget_killed_holder(lock)
    assert [path.name for path in lock.parent.iterdir()] == [lock.name]
    assert locks.of_killed_holders(lock.parent) == []


def test_a_note_without_a_lock_is_none(lock):
    assert locks.of_killed_holders(lock.parent) == [], "there is no folder"
    lock.parent.mkdir()
    lock.with_name(f"{lock.name}.holder").touch()
    assert locks.of_killed_holders(lock.parent) == []


# ---------------------------------------------------------------- locks on files that exist


@pytest.fixture
def file(tmp_path):
    (tmp_path / "file").touch()
    return tmp_path / "file"


def test_a_file_is_held_by_one_alone_or_shared_by_many(file):
    alone = locks.try_exclusive(file)
    assert locks.try_exclusive(file) is None
    assert locks.try_shared(file) is None
    alone.release()
    sharing = [locks.try_shared(file), locks.try_shared(file)]
    assert None not in sharing
    assert locks.try_exclusive(file) is None
    for each in sharing:
        each.release()
        assert each.released
    locks.try_exclusive(file).release()


def test_letting_go_twice_lets_go_of_nothing_else(file):
    held = locks.try_exclusive(file)
    held.release()
    again = locks.try_exclusive(file)
    held.release()
    assert locks.try_shared(file) is None
    again.release()


def test_who_holds_alone_may_begin_to_share(file):
    held = locks.try_exclusive(file)
    held.share()
    locks.try_shared(file).release()
    held.release()


def test_a_lock_is_on_the_file_not_on_its_name(file):
    held = locks.try_exclusive(file)
    assert held.is_at(file)
    moved = file.rename(file.with_name("moved"))
    file.touch()
    assert held.is_at(moved)
    assert not held.is_at(file)
    moved.unlink()
    assert not held.is_at(moved)
    held.release()


@contextmanager
def forked():
    """Have a forked child of this process during the block."""
    ready, done = os.pipe(), os.pipe()
    child = os.fork()
    if child == 0:
        os.close(done[1])
        os.write(ready[1], b"x")
        os.read(done[0], 1)
        os._exit(0)
    os.close(done[0])
    os.read(ready[0], 1)
    yield
    for each in (done[1], *ready):
        os.close(each)
    os.waitpid(child, 0)


def test_a_forked_child_does_not_keep_the_lock(file):
    held = locks.try_exclusive(file)
    with forked():
        held.release()
        locks.try_exclusive(file).release()


# ---------------------------------------------------------------- locks on names


def test_a_name_is_held_by_one_until_it_is_released_or_ends():
    name = f"pytest-kvm/test/{os.getpid()}"
    with locks.try_name(name) as held:
        assert held is not None
        assert locks.try_name(name) is None
        with locks.try_name(f"{name}/other") as other:
            assert other is not None
    hold = f"from pytest_kvm.host import locks; held = locks.try_name({name!r}); input(print(bool(held)))"
    with subprocess.Popen(
        [sys.executable, "-c", hold], stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT
    ) as process:
        assert process.stdout.readline() == b"True\n"
        assert locks.try_name(name) is None
        process.kill()
    with locks.try_name(name) as held:
        assert held is not None


def test_names_that_are_locked_can_be_listed():
    begin = f"pytest-kvm/test/{os.getpid()}/"
    assert locks.locked_names(begin) == []
    with locks.try_name(f"{begin}a b"), locks.try_name(f"{begin}c"):
        assert sorted(locks.locked_names(begin)) == ["a b", "c"]
    assert locks.locked_names(begin) == []


def test_a_forked_child_does_not_keep_a_name():
    name = f"pytest-kvm/test/{os.getpid()}"
    held = locks.try_name(name)
    with forked():
        assert locks.try_name(name) is None, "the child has let go, this process has not"
        held.close()
        locks.try_name(name).close()


def test_a_name_that_cannot_be_one_is_an_error():
    with pytest.raises(OSError, match="too long"):
        locks.try_name("x" * 200)


def test_a_file_that_is_missing_or_a_link_is_not_locked(file):
    with pytest.raises(FileNotFoundError):
        locks.try_shared(file.with_name("missing"))
    link = file.with_name("link")
    link.symlink_to(file)
    with pytest.raises(OSError, match="symbolic link"):
        locks.try_exclusive(link)
