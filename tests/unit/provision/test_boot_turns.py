"""Boots in turn, with locks of several processes."""

from __future__ import annotations

import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from pytest_kvm.errors import GuestGone
from pytest_kvm.provision import boot_turns as turns_module
from pytest_kvm.provision.boot_turns import BootTurns
from pytest_kvm.provision.start_request import Teardown
from tests.unit.provision.start_requests import START_REQUEST

WITHIN = 20

HOLDER = """
import fcntl, pathlib, sys
slot = open(pathlib.Path(sys.argv[1]) / "boot-1", "w")
fcntl.flock(slot, fcntl.LOCK_EX)
print("theirs of pid 4711", file=slot, flush=True)
print("boots", flush=True)
sys.stdin.read()
"""


def new_turns(folder, **given):
    return BootTurns(folder, **({"number": 1, "timeout": WITHIN, "pressure": float} | given))


def new_request(tell=str):
    return replace(START_REQUEST, on_step=tell, teardown=Teardown("web"))


@pytest.fixture
def their_boot(tmp_path):
    """Another process that boots a guest until it is killed."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "boots\n"
    yield process
    process.kill()
    process.communicate()


def test_no_more_boot_at_a_time_than_may(tmp_path):
    lock, now, seen = threading.Lock(), [0], []

    def boot():
        with new_turns(tmp_path, number=2).turn(new_request()):
            with lock:
                now[0] += 1
                seen.append(now[0])
            with lock:
                now[0] -= 1

    with ThreadPoolExecutor(8) as threads:
        for future in [threads.submit(boot) for _ in range(20)]:
            future.result(WITHIN)
    assert len(seen) == 20
    assert max(seen) <= 2


def test_the_next_boots_when_the_one_before_is_killed(tmp_path, their_boot):
    told = []

    def tell(step):
        told.append(step)
        their_boot.kill()

    with new_turns(tmp_path).turn(new_request(tell)):
        pass
    assert told == ["waiting for its turn to boot: theirs of pid 4711 boots"]


def test_a_guest_on_a_segment_does_not_wait(tmp_path, their_boot):
    """Its boot may need a neighbour, which would wait for the same turn."""
    request = replace(new_request(pytest.fail), nics=(object(),))
    with new_turns(tmp_path, pressure=lambda: 99.0).turn(request):
        pass


def test_a_guest_that_has_waited_long_enough_boots_all_the_same(tmp_path, their_boot, caplog):
    with new_turns(tmp_path, timeout=0.1).turn(new_request()):
        pass
    assert "web boots out of turn" in caplog.text


def test_a_guest_that_is_removed_does_not_wait_any_longer(tmp_path, their_boot):
    request = new_request(lambda _: request.teardown.close())
    with pytest.raises(GuestGone), new_turns(tmp_path).turn(request):
        pass


def test_a_full_disk_keeps_nobody_from_booting(tmp_path, monkeypatch):
    def full(*_arguments, **_named):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    for _ in range(2):
        with new_turns(tmp_path).turn(new_request(pytest.fail)):
            pass


def test_a_boot_waits_for_the_pressure_to_fall(tmp_path):
    told, pressures = [], [45.0, 12.0, 9.9]
    with new_turns(tmp_path, pressure=lambda: pressures.pop(0)).turn(new_request(told.append)):
        assert pressures == []
    assert told == [
        "waiting, 60 s at most, as this machine is short: processes wait for memory 45 % of the time"
    ]


def test_but_not_for_ever(tmp_path, monkeypatch):
    monkeypatch.setattr(turns_module, "_RECOVERS_WITHIN", 0.1)
    asked = []

    def pressure():
        asked.append(1)
        return 45.0

    with new_turns(tmp_path, pressure=pressure).turn(new_request()):
        assert len(asked) > 1
