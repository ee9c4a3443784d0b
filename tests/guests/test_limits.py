"""Guests of several processes that share what this machine has: counted from outside, as QEMUs that run."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import subprocess
import sys
import threading
from contextlib import ExitStack
from types import SimpleNamespace

import psutil
import pytest

from pytest_kvm.host.pressure import memory_pressure
from pytest_kvm.host.register import Register
from pytest_kvm.host.resources import cpus_available
from pytest_kvm.host.watcher import processes_of
from pytest_kvm.plugin.session import settings_stashed
from pytest_kvm.waiting import NotYet, wait_until
from tests import other_pytest
from tests.memory_group import MemoryGroup

WITHIN = 400

HEAD = f"""
from pathlib import Path
import pytest
import pytest_kvm as kvm
from pytest_kvm.waiting import NotYet, wait_until

SMALL = kvm.GuestSpec(memory="512MiB", vcpus=1)

def exists(name):
    if not Path(name).exists():
        raise NotYet("it does not")

def wait_for(name):
    wait_until(lambda: exists(name), describe=name, timeout={WITHIN}, every=0.05)
"""

ONE_GUEST = f"""{HEAD}
@kvm.guest
def machine():
    return SMALL

def test_here(machine):
    machine.run("true")
"""

UNTIL_TOLD = f"""{HEAD}
@kvm.guest
def machine():
    return SMALL

def test_until_told(machine):
    machine.run("true")
    Path("up").touch()
    wait_for("go")
    machine.run("true")
"""

MODULE_AND_TEST = f"""{HEAD}
@kvm.guest(scope="module")
def base():
    return SMALL

@kvm.guest
def extra():
    return SMALL

def test_one(base):
    base.run("touch /root/changed; sleep 3")

def test_both(base, extra):
    assert base.run("ls /root").stdout == "", "it was reset"
    extra.run("true")
"""

ONE_AND_ANOTHER = f"""{HEAD}
@kvm.guest(scope="module")
def base():
    return SMALL

def test_one(base):
    base.run("true")

def test_two(base, kvm_guests):
    kvm_guests.boot(SMALL)
"""


@pytest.fixture
def begin(pytester, tmp_path, run_dir, pytestconfig):
    """Start pytest processes that count each other's guests, and nobody else's."""
    cache = settings_stashed(pytestconfig).cache_dir
    begun = []

    def begin(*arguments, **options):
        pytest_arguments = other_pytest.arguments(cache=cache, run_dir=run_dir, limits=tmp_path / "limits")
        begun.append(
            subprocess.Popen(
                [sys.executable, *pytest_arguments, *arguments],
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                cwd=pytester.path,
                env=other_pytest.environment(),
                **options,
            )
        )
        return begun[-1]

    yield begin
    for process in begun:
        process.kill()
        process.communicate()


def outcome(process):
    output, _ = process.communicate(timeout=WITHIN)
    return process.returncode, output


def qemus(run_dir):
    count = 0
    for pid in processes_of(run_dir):
        try:
            count += psutil.Process(pid).name().startswith("qemu-system")
        except psutil.NoSuchProcess:
            continue
    return count


class Census:
    """Counts the QEMUs of some runs until it is stopped."""

    def __init__(self, run_dir):
        self.most = 0
        self._run_dir = run_dir
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._count)

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._end.set()
        self._thread.join()

    def _count(self):
        while not self._end.wait(0.02):
            self.most = max(self.most, qemus(self._run_dir))


@pytest.fixture
def census(run_dir):
    with Census(run_dir) as census:
        yield census


@pytest.fixture
def holders(tmp_path):
    """Return what the processes have written down."""
    register = Register(tmp_path / "limits")

    def holders():
        with register.turn():
            return register.others()

    yield holders
    register.close()


def spares(holders):
    return sum(is_leaving for each in holders for _name, _amount, is_leaving, *_ in each["grants"])


def wait_for_equal(look, wanted, *, describe):
    def check():
        seen = look()
        if seen != wanted:
            raise NotYet(f"{seen} instead of {wanted}")

    wait_until(check, describe=describe, timeout=WITHIN, every=0.05)


def test_two_runs_with_room_for_one_guest_take_turns(pytester, begin, census):
    pytester.makepyfile(test_a=ONE_GUEST, test_b=ONE_GUEST)
    first = begin("--kvm-max-guests=1", "-v", "test_a.py")
    second = begin("--kvm-max-guests=1", "-v", "test_b.py")
    (code, text), (other_code, other_text) = outcome(first), outcome(second)
    assert (code, other_code) == (0, 0), text + other_text
    assert census.most == 1
    waited = [f"at most 1 guest (--kvm-max-guests); pid {each.pid} (test_" for each in (first, second)]
    told = f"{text}\n{other_text}"
    assert any(each in told for each in waited), told
    assert ", 1 room wait " in told


def test_four_workers_with_room_for_two_guests_never_have_three(pytester, begin, census):
    pytester.makepyfile(**{f"test_{number}": ONE_GUEST for number in range(6)})
    code, text = outcome(begin("-n4", "--kvm-max-guests=2"))
    assert code == 0, text
    assert " 6 passed" in text
    assert census.most == 2


def test_workers_that_have_a_guest_and_want_another_all_get_through(pytester, begin, census):
    pytester.makepyfile(**{f"test_{number}": MODULE_AND_TEST for number in range(3)})
    code, text = outcome(begin("-n3", "--dist=loadfile", "--kvm-max-guests=3"))
    assert code == 0, text
    assert " 6 passed" in text
    assert census.most == 3


def test_a_test_that_its_own_module_leaves_no_room_for_is_told_what_has_it(pytester, begin, run_dir):
    pytester.makepyfile(test_a=ONE_AND_ANOTHER)
    code, text = outcome(begin("--kvm-max-guests=1"))
    assert code == pytest.ExitCode.TESTS_FAILED, text
    assert " 1 passed, 1 error" in text
    assert "NoCapacity: no room for a guest of 512 MiB beside the other guests of this process" in text
    assert "base: 512 MiB, for test_a.py::test_one" in text


@pytest.fixture
def runs(run_dir):
    def runs():
        """Return what is seen of the runs from outside."""
        argv = [sys.executable, "-m", "pytest_kvm", f"--kvm-run-dir={run_dir}", "ps", "--json"]
        env = other_pytest.environment()
        told = subprocess.run(argv, capture_output=True, text=True, check=True, env=env).stdout
        return [each for each in json.loads(told)["runs"] if each["folder"].startswith(str(run_dir))]

    return runs


def test_a_run_that_is_killed_leaves_its_room_to_the_next(pytester, begin, run_dir, runs):
    pytester.makepyfile(test_a=UNTIL_TOLD, test_b=ONE_GUEST)
    first = begin("--kvm-max-guests=1", "test_a.py")
    wait_for_equal((pytester.path / "up").exists, True, describe="the first run's guest")
    second = begin("--kvm-max-guests=1", "test_b.py")
    shown = iter(second.stdout.readline, "")
    has_it = f"pid {first.pid} (test_a.py::test_until_told) has a guest"
    assert any(has_it in line for line in shown)
    assert [each["test"] for each in runs() if has_it in each["waits_for"]] == ["test_b.py::test_here"]
    first.send_signal(signal.SIGKILL)
    code, text = outcome(second)
    assert code == 0, text
    assert qemus(run_dir) == 0


def test_a_spare_clone_gives_way_to_a_guest_of_another_run(pytester, begin, run_dir, holders):
    pytester.makepyfile(test_a=UNTIL_TOLD, test_b=ONE_GUEST)
    first = begin("--kvm-max-guests=2", "--kvm-pool=1", "test_a.py")
    wait_for_equal((pytester.path / "up").exists, True, describe="the first run's guest")
    wait_for_equal(lambda: spares(holders()), 1, describe="its spare clone")
    code, text = outcome(begin("--kvm-max-guests=2", "test_b.py"))
    assert code == 0, text
    assert spares(holders()) == 0
    assert qemus(run_dir) == 1, "the guest in use stays"
    (pytester.path / "go").touch()
    code, text = outcome(first)
    assert code == 0, text


@pytest.fixture
def all_turns(tmp_path):
    """Have a process boot on each processor until this is closed."""
    folder = tmp_path / "limits"
    folder.mkdir(mode=0o700)
    with ExitStack() as stack:
        for number in range(1, cpus_available() + 1):
            slot = folder / f"boot-{number}"
            slot.write_text(f"guest-{number} of pid 4711")
            stack.enter_context(_locked(slot))
        yield stack


def _locked(path):
    descriptor = path.open("r+")
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    return descriptor


def test_a_cold_boot_waits_for_its_turn_and_a_clone_does_not(pytester, begin, all_turns):
    pytester.makepyfile(test_a=ONE_GUEST)
    code, text = outcome(begin("test_a.py"))
    assert code == 0, text
    cold = begin("--kvm-cache=off", "test_a.py")
    shown = iter(cold.stdout.readline, "")
    assert any("machine: waiting for its turn to boot: guest-1 of pid 4711" in line for line in shown)
    assert cold.poll() is None
    all_turns.close()
    assert any(line == "kvm: machine: power on\n" for line in shown)


READS_A_FILE = """
import mmap, os, sys
file = os.open(sys.argv[1], os.O_RDONLY)
content = mmap.mmap(file, 0, prot=mmap.PROT_READ)
while True:
    for page in range(0, len(content), 4096):
        content[page]
"""
WRITES_A_FILE = """
import os, sys
with open(sys.argv[1], "wb") as file:
    for _ in range(200):
        file.write(os.urandom(1 << 20))
        os.fsync(file.fileno())
"""
"""Its pages are those of the group in which it was written."""


@pytest.fixture
def shortage(tmp_path):
    """Have processes wait for memory, in a control group that is too small for what they read."""
    group = MemoryGroup("short", 40 << 20)
    group.run("-c", WRITES_A_FILE, tmp_path / "large")
    command = group.python("-c", READS_A_FILE, tmp_path / "large")
    readers = [subprocess.Popen(command) for _ in range(3)]

    def end():
        for reader in readers:
            reader.kill()
            reader.wait()

    yield SimpleNamespace(end=end)
    end()
    group.remove()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root makes control groups")
def test_a_cold_boot_waits_while_this_machine_is_short_of_memory(pytester, begin, shortage):
    def look():
        if memory_pressure() < 20:
            raise NotYet(f"processes wait {memory_pressure()} % of the time")

    pytester.makepyfile(test_a=ONE_GUEST)
    wait_until(look, describe="a shortage", timeout=WITHIN)
    cold = begin("--kvm-cache=off", "test_a.py")
    shown = iter(cold.stdout.readline, "")
    assert any(
        "machine: waiting, 60 s at most, as this machine is short: processes" in line for line in shown
    )
    shortage.end()
    assert any(line == "kvm: machine: power on\n" for line in shown)
