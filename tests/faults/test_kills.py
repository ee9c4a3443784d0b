"""Processes that are killed or stopped, at any moment."""

from __future__ import annotations

import random
import signal
import statistics
import subprocess
from contextlib import suppress

import psutil
import pytest

from tests.faults.suites import BUSY, BUSY_TEST, FOREVER, HEAD, SOAK_SECONDS

KILLS, SOAK_KILLS = 4, 30
COLD_EVERY = 4
"""One in so many kills meets guests that boot and are frozen; the others meet clones."""

KILLS_ITS_WORKER = f"""{HEAD}
@pytest.mark.parametrize("turn", range(4))
def test_it(machine, turn):
    machine.run("true")
    if turn == 1:
        os.kill(os.getpid(), signal.SIGKILL)
"""

KILLS_ITS_SWITCH = f"""{HEAD}
@kvm.network(scope="module")
def lan():
    return kvm.NetworkSpec()

@kvm.guest
def joined(lan):
    return small(kvm.Nic(lan))

def test_it(joined, lan):
    joined.run("true")
    (switch,) = (each for each in psutil.Process().children() if "switch.server" in " ".join(each.cmdline()))
    switch.kill()
    joined.run("true")
    lan.isolate(joined)

def test_next(machine):
    machine.run("true")
"""


@pytest.mark.timeout(SOAK_SECONDS)
def test_kill_9_at_random_moments(loners, cache, soak, figures, pytestconfig):
    seed = pytestconfig.getoption("--soak-seed") or random.randrange(10**6)
    moments = random.Random(seed)
    once = loners.start(BUSY, f"{BUSY_TEST}[1]")
    assert once.wait() == 0, once.output  # its templates are there: most kills meet clones
    seconds = []
    for number in range(SOAK_KILLS if soak else KILLS):
        is_cold = number % COLD_EVERY == 1
        suite = loners.start(BUSY, "-x", "--kvm-cache=refresh" if is_cold else "--kvm-pool=1")
        with suppress(subprocess.TimeoutExpired):
            suite.process.wait(moments.uniform(0.3, 100 if is_cold else 25))
        assert not suite.has_ended, (seed, suite.output[-5000:])
        if number % 3 == 0:
            for switch in suite.children("switch.server"):
                with suppress(psutil.NoSuchProcess):
                    switch.suspend()
        seconds.append(suite.kill())
    worst, median = max(seconds), statistics.median(seconds)
    figures(f"{len(seconds)} kills (seed {seed}): processes gone after {median:.2f} s, at most {worst:.2f} s")
    after = loners.start(BUSY, f"{BUSY_TEST}[0]", f"{BUSY_TEST}[1]")
    assert after.wait() == 0, (seed, after.output[-5000:])
    after.wait_gone()
    cache.check_no_litter()


def test_a_killed_worker_is_replaced(suites):
    suite = suites.start(KILLS_ITS_WORKER, "-n2")
    assert suite.wait() == pytest.ExitCode.TESTS_FAILED, suite.output
    assert "crashed while running 'test_it.py::test_it[1]'" in suite.output
    assert "1 failed, 3 passed" in suite.output
    suite.wait_gone()


def test_a_killed_switch_is_told_and_the_run_goes_on(suites):
    suite = suites.start(KILLS_ITS_SWITCH)
    assert suite.wait() == pytest.ExitCode.TESTS_FAILED, suite.output
    assert "SwitchFailed: the switch of this run has ended" in suite.output
    assert ", exit status -9" in suite.output
    assert "1 passed, 2 errors" in suite.output, "the segment is the module's"
    suite.wait_gone()


def test_a_second_ctrl_c_ends_a_teardown(suites):
    suite = suites.start(FOREVER, "-k", "test_slow")
    suite.wait_shown("GUEST IS UP")
    suite.process.send_signal(signal.SIGINT)
    suite.wait_shown("TEARDOWN BEGINS")
    suite.process.send_signal(signal.SIGINT)
    assert suite.wait(60) in (pytest.ExitCode.INTERRUPTED, -signal.SIGINT)  # pytest lets the second one out
    suite.wait_gone()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP], ids=lambda number: number.name)
def test_a_job_that_is_cancelled(suites, number):
    suite = suites.start(FOREVER, "-k", "test_forever")
    suite.wait_shown("GUEST IS UP")
    suite.process.send_signal(number)
    assert suite.wait(60) == -number
    suite.wait_gone()


def test_a_run_that_was_killed_while_it_made_a_template_anew(loners, cache):
    assert loners.start(FOREVER, "-k", "test_once").wait() == 0
    suite = loners.start(FOREVER, "-k", "test_once", "--kvm-cache=refresh")
    suite.wait_shown("joined: the kernel speaks")
    suite.kill()
    suite.wait_gone()
    assert list(cache.templates.glob("locks/*.holder")), "the killed process has left its note"
    assert loners.start(FOREVER, "-k", "test_once").wait() == 0
    cache.check_no_litter()
