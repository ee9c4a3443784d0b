"""Each report of a kernel is told once, and only those that came since the watch began."""

from __future__ import annotations

import base64
import time
from types import SimpleNamespace

import psutil
import pytest

from pytest_kvm.errors import AgentError, DomainFailed
from pytest_kvm.machine import kernel_log
from pytest_kvm.machine.kernel_watch import KernelWatch
from tests.fakes import FakeDomain

BUG = "[   20.000001] BUG: Bad page state\n[   20.000002] ---[ end trace 0 ]---\n"
PANIC = "[   21.000000] Kernel panic - not syncing: sysrq triggered crash\n[   21.000001] ---[ end Kernel\n"
BOOT = "[    0.000000] Linux version 6.12\n"
LOCKUP = "[   33.000000] watchdog: BUG: soft lockup - CPU#0 stuck for 26s! [a:12]\n[   33.000001] </TASK>\n"


class Kmsg:
    """The agent's side of /dev/kmsg, and of /proc/uptime."""

    def __init__(self, domain: FakeDomain) -> None:
        self.records: list[tuple[int, str, int]] = []
        self.asked: list[str] = []
        self.opened = 0
        self.uptime = "0.00 0.00\n"
        self._at = 0
        self._rest = b""
        domain.agent_replies |= {
            "guest-file-open": self._open,
            "guest-file-seek": self._seek,
            "guest-file-read": self._read,
            "guest-file-close": lambda _arguments: {},
            "guest-exec": self._exec,
            "guest-exec-status": self._status,
        }

    def log(self, text: str, *, micros: int = 5_000_000, priority: int = 4) -> None:
        """Log a record; the priority of the kernel's own is below 8."""
        self.records.append((micros, text, priority))

    def restart_agent(self) -> None:
        """Let its handles be gone."""
        self.opened += 100

    def _record(self, number: int) -> bytes:
        micros, text, priority = self.records[number]
        return f"{priority},{number},{micros},-;{text}\n KEY=value\n".encode()

    def _check(self, arguments):
        if arguments["handle"] != self.opened:
            raise AgentError(f"handle '{arguments['handle']}' has not been found")

    def _open(self, arguments):
        if arguments["path"] == "/proc/uptime":
            return -1
        assert arguments == {"path": "/dev/kmsg", "mode": "r"}
        self.opened += 1
        self._at, self._rest = 0, b""
        return self.opened

    def _seek(self, arguments):
        self._check(arguments)
        assert arguments["whence"] == "end"
        self._at, self._rest = len(self.records), b""
        return {}

    def _read(self, arguments):
        if arguments["handle"] == -1:
            return {"buf-b64": base64.b64encode(self.uptime.encode()).decode()}
        self._check(arguments)
        self.asked.append("read")
        if not self._rest:
            if self._at >= len(self.records):
                raise AgentError("failed to read file: Resource temporarily unavailable")
            self._rest = self._record(self._at)
            self._at += 1
        data, self._rest = self._rest[: arguments["count"]], self._rest[arguments["count"] :]
        assert len(data) == arguments["count"], "the agent would lose the rest"
        return {"buf-b64": base64.b64encode(data).decode()}

    def _exec(self, arguments):
        assert arguments["path"] == "sh"
        self.asked.append("dd")
        return {"pid": 1}

    def _status(self, arguments):
        text = b"".join(map(self._record, range(len(self.records))))
        return {"exited": True, "exitcode": 1, "out-data": base64.b64encode(text).decode()}


@pytest.fixture
def kmsg(domain):
    return Kmsg(domain)


@pytest.fixture
def watch(machine, printed):
    printed("[    1.000000] BUG: the template's\n")
    machine.kernel.begin()
    return machine.kernel


def told(watch):
    return [report.line for report in watch.look()]


# ------------------------------------------------------------ the console


def test_nothing_is_told_before_the_watch_begins(machine, printed):
    printed(BUG)
    assert not machine.kernel.look()


def test_a_report_is_told_once_and_what_came_before_never(watch, printed):
    assert not told(watch)
    printed(BUG)
    assert told(watch) == ["BUG: Bad page state"]
    assert not told(watch)


def test_a_line_is_read_when_it_is_complete(watch, printed):
    printed(BUG[:20])
    assert not told(watch)
    printed(BUG[20:])
    assert told(watch) == ["BUG: Bad page state"]


def test_a_panic_without_a_stamp_is_a_programs_where_the_kernel_prints_stamps(watch, printed):
    printed("Kernel panic - not syncing: says a program\n")
    assert not told(watch)


def test_what_was_skipped_is_not_told_by_the_log_either(kmsg, watch, printed):
    printed(BUG)
    kmsg.log("BUG: Bad page state", micros=20_000_001)
    watch.read_console()
    watch.skip_console()
    assert not told(watch)


def test_what_was_shown_before_a_reset_is_nobodys(watch, printed):
    begun = watch.begun_at
    printed(BUG)
    watch.note_undone()
    assert not told(watch)
    assert begun < watch.begun_at <= time.monotonic()


def test_what_is_shown_again_is_not_new(watch, printed):
    printed("# dmesg\n[    1.000000] BUG: the template's\n")
    printed(BUG)
    assert told(watch) == ["BUG: Bad page state"]
    printed("# dmesg\n" + BOOT + "[    1.000000] BUG: the template's\n" + BUG)
    assert not told(watch)


def test_a_program_that_shows_the_kernels_version_boots_nothing(kmsg, watch, printed):
    kmsg.log("BUG: hidden at boot")
    watch.skip_log()
    printed("# dmesg\n" + BOOT)
    assert not told(watch)


def test_an_oops_that_is_printed_in_two_parts_is_one(watch, printed):
    printed("[   20.000001] BUG: kernel NULL pointer dereference, address: 0\n")
    assert told(watch) == ["BUG: kernel NULL pointer dereference, address: 0"]
    printed("[   20.300001] Oops: 0000 [#1] PREEMPT SMP\n[   20.300002] RIP: foo\n")
    assert not told(watch)
    printed("[   27.300001] Oops: 0000 [#2] PREEMPT SMP\n[   27.300002] RIP: foo\n")
    assert told(watch) == ["Oops: 0000 [#2] PREEMPT SMP"]


def test_the_next_boot_can_report_the_same_at_the_same_time(domain, watch, printed):
    early = "[    0.000000] BUG: early\n[    0.000000] BUG: also early\n[    9.000000] .\n"
    printed(BOOT + early)
    assert told(watch) == ["BUG: early", "BUG: also early"]
    domain.reset()
    printed(BOOT + early)
    assert told(watch) == ["BUG: early", "BUG: also early"]


def test_a_console_whose_file_was_begun_anew_is_searched_from_its_beginning(machine, watch, printed):
    printed("x" * 500 + "\n")
    assert not told(watch)
    watch.expect_panic(since=machine.console.offset())
    machine.console.log.write_text(PANIC)
    assert not told(watch), "the panic is still expected"
    machine.console.log.write_text(BOOT)
    watch.look()
    printed(BUG)
    assert told(watch) == ["BUG: Bad page state"]


def test_the_watch_goes_on_when_the_guest_is_switched_on_again(machine, watch, printed):
    printed(BUG)
    printed(PANIC)
    following = KernelWatch(machine.console, machine.domain, patience=1.0)
    following.go_on_from(watch)
    printed(BOOT + "[    0.100000] BUG: while it boots\n[    9.000000] .\n")
    expected = [
        "BUG: Bad page state",
        "Kernel panic - not syncing: sysrq triggered crash",
        "BUG: while it boots",
    ]
    assert told(following) == expected
    assert not told(following)


def test_a_panic_is_told_after_any_number_of_warnings(watch, printed):
    for number in range(20, 90):
        printed(f"[   {number}.000001] WARNING: CPU: 0 PID: 1 at a.c:1 f+0x1/0x2\n")
    printed("[   90.000000] Kernel panic - not syncing: why\n[   90.000001] ---[ end Kernel\n")
    assert told(watch)[-1] == "Kernel panic - not syncing: why"


def test_of_a_flood_the_end_is_searched(watch, printed):
    printed(BUG)
    printed(b"x" * 79 + b"\n" + (b"y" * 1023 + b"\n") * 9000)
    printed(PANIC)
    assert told(watch) == ["Kernel panic - not syncing: sysrq triggered crash"]


# ------------------------------------------------------------ panics on purpose


@pytest.fixture(params=["reset", "kexec"])
def boots(request, domain, printed):
    """Boot the guest after a panic; a machine that is reset may print nothing of it."""
    return domain.reset if request.param == "reset" else lambda: printed(BOOT)


def test_a_panic_on_purpose_is_expected_until_the_guest_boots(machine, watch, printed, boots):
    offset = machine.console.offset()
    printed(PANIC)
    watch.expect_panic(since=offset)
    assert not told(watch)
    printed("[   22.000000] BUG: of the same kernel\n[   30.000000] .\n")
    assert not told(watch)
    boots()
    printed(BUG)
    assert told(watch) == ["BUG: Bad page state"]


def test_and_until_it_is_restored(machine, watch, printed):
    watch.expect_panic(since=machine.console.offset())
    printed(PANIC)
    watch.note_restore()
    printed(BUG)
    assert told(watch) == ["BUG: Bad page state"]


def test_what_came_before_a_panic_on_purpose_is_told(machine, watch, printed):
    printed(BUG)
    offset = machine.console.offset()
    printed(PANIC)
    watch.expect_panic(since=offset)
    assert told(watch) == ["BUG: Bad page state"]


def test_a_kernel_that_has_panicked_is_not_asked(kmsg, watch, printed, boots):
    printed(PANIC)
    assert told(watch) == ["Kernel panic - not syncing: sysrq triggered crash"]
    kmsg.asked.clear()
    assert not told(watch)
    assert not kmsg.asked
    boots()
    assert not told(watch)
    assert kmsg.asked


# ------------------------------------------------------------ the kernel's log


def test_the_log_tells_what_the_console_hides(kmsg, watch):
    for number in range(7):
        kmsg.log(f"harmless {number}")
    assert not told(watch)
    kmsg.log("INFO: task a:1 blocked for more than 120 seconds.", micros=7_000_000)
    assert told(watch) == ["INFO: task a:1 blocked for more than 120 seconds."]
    assert not told(watch)


def test_a_log_with_nothing_new_is_one_question(kmsg, watch):
    kmsg.asked.clear()
    assert not told(watch)
    assert kmsg.asked == ["read"]


def test_a_record_whose_number_has_many_digits(kmsg, watch):
    kmsg.records = [(1, "old", 4)] * 123_456
    watch.begin()
    kmsg.log("BUG: the last", micros=61_000_007)
    assert told(watch) == ["BUG: the last"]


def test_console_and_log_tell_the_same_once(kmsg, watch, printed):
    kmsg.log("BUG: Bad page state", micros=20_000_001)
    printed(BUG)
    assert told(watch) == ["BUG: Bad page state"]


CALLER = "[   20.000001][    T7] BUG: Bad page state\n[   20.000002][    T7] ---[ end trace 0 ]---\n"
NOT_ASCII = "[   20.000001] BUG: Bad page state in process b\u00f6se\n[   30.000002] .\n"


@pytest.mark.parametrize(
    ("on_console", "logged"),
    [(CALLER, "BUG: Bad page state"), (NOT_ASCII, r"BUG: Bad page state in process b\xc3\xb6se")],
)
def test_console_and_log_may_write_the_same_line_in_two_ways(kmsg, watch, printed, on_console, logged):
    printed(on_console)
    kmsg.log(logged, micros=20_000_001)
    assert len(told(watch)) == 1


def test_of_a_report_that_the_console_shows_in_part_the_log_tells_the_rest(kmsg, watch, printed):
    kmsg.log("python3 invoked oom-killer: gfp_mask=0xcc0", micros=20_000_000)
    kmsg.log("oom-kill:constraint=CONSTRAINT_MEMCG,oom_memcg=/a.slice", micros=20_000_001)
    kmsg.log("Memory cgroup out of memory: Killed process 4 (python3)", micros=20_000_002)
    printed("[   20.000002] Memory cgroup out of memory: Killed process 4 (python3)\n")
    (report,) = watch.look()
    assert "oom_memcg=/a.slice" in report.text


def test_an_oops_that_is_logged_in_two_parts_is_one(kmsg, watch):
    kmsg.log("BUG: kernel NULL pointer dereference, address: 0", micros=20_000_000)
    assert told(watch) == ["BUG: kernel NULL pointer dereference, address: 0"]
    kmsg.log("Oops: 0000 [#1] SMP", micros=20_000_002)
    assert not told(watch)


def test_what_was_logged_before_a_restore_is_not_new_to_an_agent_that_was_restarted(kmsg, watch, monkeypatch):
    kmsg.log("BUG: hidden at boot", micros=2_000_000)
    watch.skip_log()
    kmsg.restart_agent()
    kmsg.uptime = "500.00 1.00\n"
    assert not told(watch)
    clock = SimpleNamespace(monotonic=lambda: later)
    later = time.monotonic() + 50
    monkeypatch.setattr(kernel_log, "time", clock)
    watch.note_restore()
    kmsg.restart_agent()
    kmsg.uptime = "10.00 1.00\n"
    kmsg.log("BUG: now", micros=9_900_000)
    assert told(watch) == ["BUG: now"]


def test_after_a_failed_look_another_kernel_numbers_its_records_anew(domain, kmsg, watch):
    for number in range(9):
        kmsg.log(f"harmless {number}")
    watch.skip_log()
    execute = domain.agent_replies.pop("guest-exec")
    kmsg.log("harmless")
    assert not told(watch)
    domain.agent_replies["guest-exec"] = execute
    kmsg.records.clear()  # kexec(8) resets no machine
    kmsg.restart_agent()
    kmsg.log("BUG: in another kernel")
    assert told(watch) == ["BUG: in another kernel"]


def test_a_guest_that_was_booted_has_another_log(kmsg, watch):
    kmsg.restart_agent()
    kmsg.log("BUG: after the boot", micros=1)
    assert told(watch) == ["BUG: after the boot"]
    kmsg.log("BUG: later", micros=2)
    assert told(watch) == ["BUG: later"]


def test_what_is_in_the_log_already_is_not_new_to_an_agent_that_was_restarted(kmsg, watch):
    kmsg.log("BUG: long ago", micros=1_000_000)
    watch.skip_log()
    kmsg.restart_agent()
    kmsg.uptime = "500.00 1.00\n"
    kmsg.log("BUG: now", micros=499_900_000)
    assert told(watch) == ["BUG: now"]
    assert not told(watch)


def test_what_was_skipped_in_the_log_is_not_told(kmsg, watch):
    kmsg.log("BUG: before")
    watch.skip_log()
    kmsg.log("BUG: after")
    assert told(watch) == ["BUG: after"]


def test_a_log_that_cannot_be_read_once_is_read_the_next_time(domain, kmsg, watch):
    execute = domain.agent_replies.pop("guest-exec")
    kmsg.log("BUG: hidden")
    assert not told(watch)
    domain.agent_replies["guest-exec"] = execute
    assert told(watch) == ["BUG: hidden"]
    assert not told(watch)


def test_an_agent_that_is_away_for_a_while_is_asked_again(domain, kmsg, watch):
    replies, domain.agent_replies = domain.agent_replies, {}
    kmsg.restart_agent()
    assert not told(watch)
    domain.agent_replies = replies
    kmsg.log("BUG: meanwhile")
    assert told(watch) == ["BUG: meanwhile"]


@pytest.mark.parametrize("how", ["booted", "restored"])
def test_an_agent_that_kept_us_waiting_is_asked_again_once_the_guest_is(
    domain, kmsg, watch, monkeypatch, how
):
    monkeypatch.setattr(watch._kernel_log, "_is_silent", True)
    kmsg.asked.clear()
    assert not told(watch)
    assert not kmsg.asked
    if how == "booted":
        domain.reset()
    else:
        watch.note_restore()
    assert not told(watch)
    assert kmsg.asked


def test_an_agent_that_keeps_us_waiting_is_not_asked_again(domain, kmsg, watch, monkeypatch, caplog):
    monkeypatch.setattr(watch._kernel_log, "_patience", 0.0)
    domain.agent_replies = {}
    assert not told(watch)
    assert "its kernel's log cannot be read" in caplog.text
    domain.agent_replies = {"guest-file-read": lambda _arguments: pytest.fail("it was asked")}
    assert not told(watch)


@pytest.mark.parametrize("data", [b"", b"x" * 8, None, 7])
def test_whatever_the_agent_answers_is_no_error(domain, kmsg, watch, data):
    encoded = base64.b64encode(data).decode() if isinstance(data, bytes) else data
    domain.agent_replies["guest-file-read"] = lambda _arguments: {"buf-b64": encoded}
    assert not told(watch)
    domain.agent_replies["guest-file-read"] = lambda _arguments: {}
    assert not told(watch)


def test_an_uptime_that_is_no_number_loses_nothing(kmsg, watch):
    kmsg.restart_agent()
    kmsg.uptime = "soon"
    kmsg.log("BUG: now")
    assert not told(watch)
    kmsg.uptime = "6.00 1.00\n"
    assert told(watch) == ["BUG: now"]


def test_a_failure_of_the_hypervisor_is_no_error(domain, kmsg, watch, monkeypatch):
    def state():
        raise DomainFailed("gone")

    monkeypatch.setattr(domain, "state", state)
    assert not told(watch)


def test_a_paused_guest_is_not_asked(domain, kmsg, watch):
    domain.suspend()
    kmsg.log("BUG: hidden")
    kmsg.asked.clear()
    assert not told(watch)
    assert not kmsg.asked


def test_what_programs_write_to_the_log_is_not_told(kmsg, watch, printed):
    kmsg.log("BUG: says a program", micros=6_000_000, priority=12)
    printed("[    6.000000] BUG: says a program\n")
    printed("[    6.000001] [    5.000000] BUG: quotes a program\n")
    assert not told(watch)
    kmsg.log("BUG: says the kernel", micros=7_000_000)
    printed("[    7.000000] BUG: says the kernel\n")
    assert told(watch) == ["BUG: says the kernel"]


# ------------------------------------------------------------ a host without time for the guest


@pytest.fixture
def spins(monkeypatch):
    """Let QEMU use processor time."""
    used = [100.0]
    times = SimpleNamespace(cpu_times=lambda: SimpleNamespace(user=used[0], system=0.0))
    monkeypatch.setattr(psutil, "Process", lambda _pid: times)

    def spin(seconds):
        used[0] += seconds

    return spin


def test_a_lockup_after_a_restore_is_judged_by_the_time_since(kmsg, watch, printed, spins):
    spins(500)
    watch.note_restore()
    printed(LOCKUP)
    watch.read_console()
    spins(60)
    kmsg.log("watchdog: BUG: soft lockup - CPU#0 stuck for 26s! [a:12]", micros=33_000_000)
    (lockup,) = watch.look()
    assert "had 0.0 s of processor time" in lockup.excuse
    assert lockup.explained.endswith(f"({lockup.excuse})")
    assert not told(watch)


def test_a_lockup_before_a_restore_is_judged_by_the_time_before(watch, printed, spins):
    watch.note_restore()
    spins(500)
    printed(LOCKUP)
    watch.note_restore()
    (lockup,) = watch.look()
    assert not lockup.excuse


STALL = "rcu: INFO: rcu_preempt self-detected stall on CPU\n[   30.000001] (t=21000 jiffies g=1 q=2)"
SLEEPER = STALL.replace("\n", "\n[   30.000001] Tasks blocked on level-0 rcu_node\n")


@pytest.mark.parametrize(
    ("lines", "used", "is_excused"),
    [(STALL, 20, True), (STALL, 22, False), (SLEEPER, 0, False), ("BUG: Bad page state", 0, False)],
)
def test_only_a_report_that_measures_time_is_excused(watch, printed, spins, lines, used, is_excused):
    watch.note_restore()
    spins(used)
    printed(f"[   30.000000] {lines}\n[   90.000000] .\n")
    (report,) = watch.look()
    assert bool(report.excuse) is is_excused
