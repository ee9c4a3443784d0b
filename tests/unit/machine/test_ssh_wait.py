"""The host's side of a forwarded port, played by a socket of the test's own."""

from __future__ import annotations

import threading
import time

import pytest

from pytest_kvm.errors import DomainFailed, EmergencyMode, KernelPanicked, QemuDied, SshNeverAnswered
from pytest_kvm.machine.boot import Boot, Phases
from pytest_kvm.machine.console_errors import ConsoleWatch
from pytest_kvm.machine.ssh_wait import SshStuckDetector, wait_for_banner
from pytest_kvm.render.qemu_args import card_id
from pytest_kvm.spec.nic import CONTROL_NETDEV
from tests.fakes import fake_machine
from tests.slirp import Slirp

BANNER = b"SSH-2.0-OpenSSH_10.0\r\n"


@pytest.fixture
def boot_at(tmp_path, domain, shell):
    def made(port):
        machine = fake_machine(tmp_path, domain=domain, shell=shell, port=port)
        return Boot(machine=machine, phases=Phases(machine.log), watch=ConsoleWatch(machine.console))

    return made


def silent(_number, _line):
    """The guest has no network yet."""


def test_the_very_connection_that_has_a_banner_is_handed_over(boot_at):
    with Slirp(treat=lambda _number, line: line.sendall(BANNER)).serving() as slirp:
        line = wait_for_banner(boot_at(slirp.port), timeout=10)
        line.settimeout(1)
        assert line.recv(100) == BANNER
        line.close()


def test_a_later_attempt_wins_over_one_that_hangs(boot_at):
    def third_time_lucky(number, line):
        if number == 3:
            line.sendall(BANNER)

    with Slirp(treat=third_time_lucky).serving() as slirp:
        began = time.monotonic()
        wait_for_banner(boot_at(slirp.port), timeout=10).close()
        assert time.monotonic() - began < 3  # libslirp's own first retry comes after 3 s
        # The losers are closed: their other ends read the end of the stream.
        for line in slirp.accepted[:2]:
            line.settimeout(5)
            assert line.recv(1) == b""


def test_refusals_are_followed_up_quickly(boot_at):
    def refuse_twice(number, line):
        if number < 3:
            line.close()
        else:
            line.sendall(BANNER)

    with Slirp(treat=refuse_twice).serving() as slirp:
        wait_for_banner(boot_at(slirp.port), timeout=10).close()
        assert len(slirp.accepted) == 3


def test_a_slow_sshd_is_not_flooded_once_refusals_were_seen(boot_at):
    def slow(number, line):
        if number == 1:
            line.close()
        else:
            timer = threading.Timer(0.7, line.sendall, [BANNER])
            timer.start()
            timers.append(timer)

    timers = []
    with Slirp(treat=slow).serving() as slirp:
        wait_for_banner(boot_at(slirp.port), timeout=10).close()
        assert len(slirp.accepted) == 2
        for timer in timers:
            timer.join()


def test_few_connections_are_open_at_any_time_and_ever_fewer_are_made(boot_at):
    with Slirp(treat=silent).serving() as slirp:
        with pytest.raises(SshNeverAnswered, match="no SSH banner within 4 s: the guest's network never"):
            wait_for_banner(boot_at(slirp.port), timeout=3.6)
        assert 5 <= len(slirp.accepted) <= 6
        for line in slirp.accepted:
            line.settimeout(5)
            assert line.recv(1) == b""


def test_a_guest_without_a_network_is_dialled_once(boot_at, domain):
    def once_up(_number, line):
        if not domain.has_no_network:
            line.sendall(BANNER)

    def up():
        seen.append(len(slirp.accepted))
        domain.has_no_network = False

    seen = []
    domain.has_no_network = True
    timer = threading.Timer(1.5, up)
    with Slirp(treat=once_up).serving() as slirp:
        timer.start()
        wait_for_banner(boot_at(slirp.port), timeout=10).close()
        timer.join()
        assert (seen, len(slirp.accepted)) == ([1], 2)


def test_a_card_that_cannot_be_asked_for_is_taken_for_one_in_use(boot_at, domain, monkeypatch):
    def qmp(*command):
        asked.append(command)
        raise DomainFailed("there is no such card")

    asked = []
    monkeypatch.setattr(domain, "qmp", qmp)
    second = Slirp(treat=lambda number, line: line.sendall(BANNER) if number == 2 else None)
    with second.serving():
        wait_for_banner(boot_at(second.port), timeout=10).close()
    assert asked == [("query-rx-filter", {"name": card_id(CONTROL_NETDEV)})]


def test_sshd_that_has_answered_before_is_given_time(boot_at):
    def slow(_number, line):
        timers.append(threading.Timer(1.5, line.sendall, [BANNER]))
        timers[-1].start()

    timers = []
    with Slirp(treat=slow).serving() as slirp:
        wait_for_banner(boot_at(slirp.port), timeout=10, known=True).close()
        assert len(slirp.accepted) == len(timers) == 1
        timers[0].join()


def test_sshd_that_has_enough_is_left_alone_for_a_while(boot_at):
    def once_it_has_had_a_rest(number, line):
        line.sendall(b"Not allowed at this time\r\n" if number == 1 else BANNER)
        times.append(time.monotonic())

    times = []
    with Slirp(treat=once_it_has_had_a_rest).serving() as slirp:
        wait_for_banner(boot_at(slirp.port), timeout=10).close()
        assert len(slirp.accepted) == 2
    assert times[1] - times[0] >= 2.9


def test_the_error_says_what_was_seen(boot_at):
    strange = Slirp(treat=lambda _number, line: line.sendall(b"HTTP/1.1 400\r\n"))
    with strange.serving(), pytest.raises(SshNeverAnswered, match=r"answered with b'HTTP/1.1 400"):
        wait_for_banner(boot_at(strange.port), timeout=0.5)
    enough = Slirp(treat=lambda _number, line: line.sendall(b"Not allowed at this time\r\n"))
    with enough.serving(), pytest.raises(SshNeverAnswered, match="turns connections away .*MaxStartups"):
        wait_for_banner(boot_at(enough.port), timeout=0.5)
    closed = Slirp(treat=lambda _number, line: line.close())
    with closed.serving(), pytest.raises(SshNeverAnswered, match="nothing listens on port 22") as never:
        wait_for_banner(boot_at(closed.port), timeout=0.5)
    assert "boot phases: power on 0.0 s" in never.value.details


@pytest.mark.parametrize(
    ("text", "error"),
    [("Kernel panic - not syncing: x\n", KernelPanicked), ("You are in emergency mode\n", EmergencyMode)],
)
def test_the_console_ends_the_wait(boot_at, printed, text, error):
    boot = boot_at(1)
    timer = threading.Timer(0.2, printed, ["Linux version 6\n" + text])
    timer.start()
    with pytest.raises(error, match=text.strip()) as failed:
        wait_for_banner(boot, timeout=600)
    assert "Linux version 6" in failed.value.details
    assert "console" in boot.phases.seconds()


def test_the_end_of_qemu_ends_the_wait_at_once(boot_at, domain):
    with Slirp(treat=silent).serving() as slirp:
        timer = threading.Timer(0.1, domain.end, ["killed by signal 9"])
        timer.start()
        with pytest.raises(QemuDied, match="killed by signal 9"):
            wait_for_banner(boot_at(slirp.port), timeout=600)


def test_a_domain_that_ends_after_the_wait_disturbs_nobody(boot_at, domain):
    with Slirp(treat=lambda _number, line: line.sendall(BANNER)).serving() as slirp:
        wait_for_banner(boot_at(slirp.port), timeout=10).close()
    domain.end("destroyed")


def test_what_finds_the_guest_stuck_ends_the_wait(boot_at):
    def stuck(seen):
        raise LookupError(seen)

    with pytest.raises(LookupError):
        wait_for_banner(boot_at(1), timeout=600, check_stuck=stuck)


# ---------------------------------------------------------------- is it worth waiting

STATE = "systemctl is-system-running"
FAILED = "systemctl list-units --failed --no-legend --plain --no-pager"


@pytest.fixture
def asked(boot, domain):
    """Ask once per second for a minute, with the answers given."""

    def ask(*states, failed=""):
        domain.agent_runs({STATE: list(states), FAILED: failed})
        now = iter(range(1000))
        detector = SshStuckDetector(boot, clock=lambda: next(now) / 3)
        for _ in range(200):
            detector("nothing listens on port 22")

    return ask


def test_a_guest_without_an_agent_is_waited_for(boot):
    detector = SshStuckDetector(boot, clock=iter(range(0, 10000, 10)).__next__)
    for _ in range(50):
        detector("nothing")


def test_a_qemu_that_ends_while_it_is_asked_is_for_others_to_tell(boot, domain, monkeypatch):
    def gone(*_, **__):
        raise DomainFailed("requested operation is not valid: domain is not running")

    monkeypatch.setattr(domain, "agent", gone)
    detector = SshStuckDetector(boot, clock=iter(range(0, 10000, 10)).__next__)
    for _ in range(50):
        detector("nothing")


def test_a_guest_that_still_starts_is_waited_for(asked):
    asked(*["starting"] * 20)


def test_a_guest_that_has_finished_without_sshd_is_given_up(asked):
    with pytest.raises(
        SshNeverAnswered, match=r"finished booting \(degraded\).*port 22(.|\n)*ssh.service failed"
    ):
        asked("starting", "degraded", "degraded", failed="ssh.service failed")


def test_one_look_is_not_enough_to_give_up(asked):
    with pytest.raises(IndexError):  # a third look was wanted
        asked("running", "starting")


def test_rescue_mode_is_told(asked):
    with pytest.raises(EmergencyMode, match="rescue or emergency mode"):
        asked("maintenance")
