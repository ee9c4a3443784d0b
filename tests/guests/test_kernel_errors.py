"""What a guest's kernel reports fails the test that ran: a suite of its own, on clones of one guest."""

from __future__ import annotations

import pytest

SUITE = r"""
import unittest
import pytest
import pytest_kvm as kvm

LOCKUP = "watchdog: BUG: soft lockup - CPU#0 stuck for 0s! [foo:12]"
LONG_LOCKUP = LOCKUP.replace("0s", "26000s")
STALL = "rcu: INFO: rcu_preempt self-detected stall on CPU"
WARNING = "WARNING: CPU: 0 PID: 41 at fs/foo.c:9 foo+0x12/0x30"


SCRIPT = 'nft "$1" && echo >/dev/udp/127.0.0.1/9; nft delete table inet say'


def table(*lines):
    # The kernel itself prints them, as it logs a packet: what programs write does not count.
    rules = "; ".join(f'udp dport 9 log prefix "{line} " level err' for line in lines)
    return f"table inet say {{ chain out {{ type filter hook output priority 0; {rules}; }}; }};"


def say(vm, *lines):
    vm.run(["bash", "-c", SCRIPT, "bash", table(*lines)])


def say_hidden(vm, *lines):
    vm.run(["dmesg", "-n", "1"])
    say(vm, *lines)


@kvm.guest(scope="module")
def vm():
    return kvm.GuestSpec(memory="512MiB", vcpus=1, allow_kernel_errors=["of the spec"])


def test_before(vm):
    vm.run("true")


def test_oops(vm):
    say(vm, "BUG: kernel NULL pointer dereference, address: 0", "RIP: 0010:guilty+0x1",
        "---[ end trace 0 ]---")


def test_after(vm):
    vm.run("true")


def test_hung_task_that_the_console_hides(vm):
    vm.run('''
        dmesg -n 1
        echo 1 >/proc/sys/kernel/hung_task_timeout_secs
        fsfreeze -f /
        touch /touched &
        until dmesg | grep -q "blocked for more than"; do sleep 0.2; done
        fsfreeze -u /
        wait
    ''')


def eat(vm):
    eater = "import sys; sys.stdout.write('begun'); a = bytearray(200 << 20)"
    limits = ["--property=MemoryMax=40M", "--property=MemorySwapMax=0"]
    vm.run(["systemd-run", "--wait", "--quiet", *limits, "python3", "-c", eater], check=False)


def test_oom_kill(vm):
    eat(vm)


@pytest.mark.kvm(allow_kernel_errors=["oom_memcg=/system.slice/run-"])
def test_oom_kill_that_is_allowed(vm):
    vm.run(["dmesg", "-n", "4"])  # of the report, the console shows the last line only
    eat(vm)


def test_own_failure(vm):
    say(vm, LOCKUP)
    assert "mine" == "other"


def test_command_fails(vm):
    say(vm, LOCKUP)
    vm.run("exit 3")


def test_program_prints(vm):
    vm.run("echo '<3>BUG: says a program' >/dev/kmsg; dmesg -n 1; echo '<3>BUG: it says again' >/dev/kmsg")


def test_agent_is_restarted(vm):
    vm.run("systemctl restart qemu-guest-agent")
    vm.agent.wait(timeout=60)
    say_hidden(vm, STALL)


def test_skips_itself(vm):
    say(vm, LOCKUP)
    pytest.skip("too late")


@pytest.mark.xfail(raises=kvm.GuestUnhealthy, strict=True)
def test_expected_failure(vm):
    say(vm, LOCKUP)


def test_allowed_by_spec(vm):
    say(vm, f"{LOCKUP} of the spec")


@pytest.mark.kvm(kernel_errors="ignore")
def test_ignore(vm):
    say(vm, LOCKUP)


@pytest.mark.kvm(kernel_errors="warn")
def test_warn(vm):
    say(vm, LOCKUP)


def test_host_had_no_time(vm):
    say(vm, LONG_LOCKUP)


def test_warning(vm):
    say(vm, WARNING)


@pytest.mark.kvm(kernel_warnings="fail")
def test_strict(vm):
    say(vm, WARNING)


def test_savepoint(vm):
    with vm.savepoint():
        say(vm, LOCKUP)


def test_crash(vm):
    vm.crash()


def test_crash_and_reboot(vm):
    vm.crash()
    vm.reboot(hard=True)
    say(vm, LOCKUP)


def test_before_it_is_switched_off(vm):
    say(vm, LOCKUP)
    vm.power_off()
    vm.power_on()


def test_guest_by_name(request):
    say(request.getfixturevalue("vm"), LOCKUP)


machines = []


def test_leaves_a_program(vm):
    vm.run(["systemd-run", "bash", "-c", "sleep 2; " + SCRIPT, "bash", table(LOCKUP)])
    machines.append((vm.machine, vm.machine.console.offset()))


@pytest.fixture
def slow(vm):
    machine, offset = machines[0]  # who asks the guest itself would have it reset
    machine.console.wait("soft lockup", timeout=100, since=offset)


def test_after_what_a_program_did(vm, slow):
    vm.run("true")


class TestCase(unittest.TestCase):
    @pytest.fixture(autouse=True)
    def guest(self, vm):
        self.vm = vm

    def test_case(self):
        say(self.vm, LOCKUP)


def test_panic(vm):
    vm.start("sleep 0.3; echo 1 >/proc/sys/kernel/sysrq; echo c >/proc/sysrq-trigger")
    with pytest.raises(kvm.GuestGone):
        vm.wait_for_file("/never", timeout=100)


@pytest.fixture
def provoked(vm):
    say(vm, LOCKUP)


def test_set_up(provoked):
    pass


@pytest.fixture
def skipped(provoked):
    pytest.skip("too late")


def test_set_up_that_skips(skipped):
    pass


@pytest.fixture
def provokes(vm):
    yield
    say_hidden(vm, STALL)


def test_teardown(provokes):
    pass


@kvm.guest
def own():
    return kvm.GuestSpec(memory="512MiB", vcpus=1, allow_kernel_errors=["of the spec"])


@pytest.mark.kvm(allow_kernel_errors=["of the marker"])
def test_allowed_by_spec_and_marker(own):
    say(own, f"{LOCKUP} of the spec", f"{STALL} of the marker")


@pytest.fixture
def dying(own):
    yield
    say_hidden(own, STALL)


def test_guest_that_is_removed(dying):
    pass


def test_last(vm):
    vm.run("true")
"""

FAIL = {
    "test_oops": "GuestUnhealthy: vm: oops in its kernel: BUG: kernel NULL pointer dereference, address: 0",
    "test_hung_task_that_the_console_hides": "GuestUnhealthy: vm: hung task in its kernel: INFO: task ",
    "test_oom_kill": "GuestUnhealthy: vm: OOM kill in its kernel: Memory cgroup out of memory: Killed",
    "test_own_failure": "AssertionError: assert 'mine' == 'other'",
    "test_command_fails": "exit code 3",
    "test_agent_is_restarted": "GuestUnhealthy: vm: RCU stall in its kernel: rcu: INFO: rcu_preempt",
    "test_skips_itself": "GuestUnhealthy: vm: soft lockup in its kernel",
    "test_strict": "GuestUnhealthy: vm: warning in its kernel: WARNING: CPU: 0 PID: 41 at fs/foo.c:9",
    "test_savepoint": "GuestUnhealthy: vm: soft lockup in its kernel",
    "test_crash_and_reboot": "GuestUnhealthy: vm: soft lockup in its kernel",
    "test_before_it_is_switched_off": "GuestUnhealthy: vm: soft lockup in its kernel",
    "test_guest_by_name": "GuestUnhealthy: vm: soft lockup in its kernel",
    "test_case": "GuestUnhealthy: vm: soft lockup in its kernel",
    "test_panic": "GuestUnhealthy: vm: panic in its kernel: Kernel panic - not syncing: sysrq triggered",
    "test_set_up": "GuestUnhealthy: vm: soft lockup in its kernel",
}
ERROR = {
    "test_set_up_that_skips": "GuestUnhealthy: vm: soft lockup in its kernel",
    "test_teardown": "GuestUnhealthy: vm: RCU stall in its kernel",
    "test_guest_that_is_removed": "GuestUnhealthy: own: RCU stall in its kernel",
}
PASS = {
    "test_before",
    "test_after",
    "test_oom_kill_that_is_allowed",
    "test_program_prints",
    "test_allowed_by_spec",
    "test_ignore",
    "test_warn",
    "test_host_had_no_time",
    "test_warning",
    "test_crash",
    "test_leaves_a_program",
    "test_after_what_a_program_did",
    "test_allowed_by_spec_and_marker",
    "test_last",
}


def test_only_the_test_that_ran_fails(outcome):
    assert outcome.names("failure") == set(FAIL), outcome.shown
    assert outcome.names("error") == set(ERROR), outcome.shown
    assert outcome.names("skipped") == {"test_expected_failure"}
    assert set(outcome.cases) == {*PASS, *FAIL, *ERROR, "test_expected_failure"}


@pytest.mark.parametrize("name", FAIL)
def test_a_failure_names_the_report(outcome, name):
    assert FAIL[name] in outcome.text(name, "failure")


@pytest.mark.parametrize("name", ERROR)
def test_what_no_call_provokes_is_an_error(outcome, name):
    assert ERROR[name] in outcome.text(name, "error")


def test_a_failure_shows_the_trace_and_how_to_allow_it(outcome):
    text = outcome.text("test_oops", "failure")
    assert "RIP: 0010:guilty+0x1" in text
    assert "---[ end trace 0 ]---" in text
    assert "allow_kernel_errors" in text
    assert "pytest_kvm/" not in text


@pytest.mark.parametrize("name", ["test_own_failure", "test_command_fails"])
def test_a_tests_own_failure_comes_first(outcome, name):
    text = outcome.text(name, "failure")
    before, _, after = text.partition("kernel of vm: soft lockup")
    assert FAIL[name] in before
    assert "soft lockup - CPU#0" not in before
    assert "watchdog: BUG: soft lockup - CPU#0 stuck for 0s! [foo:12]" in after


def test_warnings_are_in_pytests_summary(outcome):
    assert "KernelErrorWarning: vm: soft lockup in its kernel" in outcome.shown
    assert "stuck for 26000.0 s" in outcome.shown
