"""What a guest's gates forbid fails the test: a suite of its own, on clones of two guests."""

from __future__ import annotations

import pytest

SUITE = r"""
import time

import pytest
import pytest_kvm as kvm
from pytest_kvm.host.artifact_folder import ArtifactFolder
from pytest_kvm.machine.evidence import Evidence

ALL = kvm.Gates(journal="err", failed_units=True, core_dumps=True, avc=True)
ABORT = ["python3", "-c", "import os; os.abort()"]
SAY = 'table inet say { chain out { type filter hook output priority 0; \
    udp dport 9 log prefix "BUG: Bad page state " level err; }; };'
PROFILE = '''
profile confined /usr/local/bin/confined {
    /usr/lib/** mr,
    /etc/ld.so.cache r,
    /usr/local/bin/confined mr,
}
'''


@kvm.guest(scope="module")
def vm():
    return kvm.GuestSpec(memory="512MiB", vcpus=1, gates=ALL)


@kvm.guest(scope="module")
def hardened():
    packages = ["systemd-coredump", "apparmor", "auditd"]
    return kvm.GuestSpec(memory="512MiB", vcpus=1, packages=packages, gates=ALL)


def log(vm):
    vm.run("echo harmless | systemd-cat -p info; echo 'disk on fire' | systemd-cat -p err")


def fail_unit(vm):
    vm.run(["systemd-run", "--unit=broken", "--wait", "false"], check=False)


def dump(vm):
    vm.run(["sh", "-c", 'ulimit -c unlimited; cd /var/tmp; "$@"', "sh", *ABORT], check=False)


def deny(vm):
    vm.write_text("/etc/apparmor.d/confined", PROFILE)
    vm.run("cp /usr/bin/cat /usr/local/bin/confined && apparmor_parser -r /etc/apparmor.d/confined")
    vm.run(["/usr/local/bin/confined", "/etc/machine-id"], check=False)


def test_quiet(vm, hardened):
    for each in (vm, hardened):
        each.run("echo harmless | systemd-cat -p info")


@pytest.mark.kvm(gates=kvm.Gates())
def test_without_gates(vm, hardened):
    for each in (vm, hardened):
        log(each)
        fail_unit(each)
        dump(each)


def test_after_it(vm, hardened):
    for each in (vm, hardened):
        each.run("true")


def test_journal(vm):
    log(vm)


def test_units(vm):
    fail_unit(vm)


def test_dump_in_a_file(vm):
    dump(vm)


def test_dump_that_a_program_takes(hardened):
    hardened.run(ABORT, check=False)


@pytest.mark.kvm(gates=kvm.Gates())
def test_dump_that_is_kept(hardened, tmp_path):
    begun = time.monotonic()
    hardened.run(ABORT, check=False)
    kept = Evidence(hardened.machine, ArtifactFolder(tmp_path / "hardened"), since=begun)
    kept.keep(None)
    assert kept.finish()["missing"] == []
    (core,) = (tmp_path / "hardened").glob("core-1.*")
    assert core.read_bytes().startswith(bytes.fromhex("28b52ffd")), "zstd(1), as systemd-coredump compresses"
    assert "/var/lib/systemd/coredump/core.python3" in (core.parent / "core-dumps.txt").read_text()


def test_denial_in_the_log_of_auditd(hardened):
    deny(hardened)
    assert hardened.run("grep -c DENIED /var/log/audit/audit.log").stdout == "1\n"


def test_denial_in_the_journal(hardened):
    hardened.run("systemctl stop auditd systemd-journald-audit.socket")
    deny(hardened)


@pytest.fixture
def logs(vm):
    log(vm)


def test_fixture(logs):
    pass


@pytest.fixture
def logs_late(vm):
    yield
    log(vm)


def test_teardown(logs_late):
    pass


def test_both(vm):
    log(vm)
    vm.run(["nft", SAY])
    vm.run(["bash", "-c", "echo >/dev/udp/127.0.0.1/9"])


def test_own_failure(vm):
    log(vm)
    assert "mine" == "other"


@pytest.mark.xfail(raises=kvm.GuestUnhealthy, strict=True)
def test_expected(vm):
    log(vm)


@pytest.mark.kvm(gates=kvm.Gates(
    journal="err", failed_units=True, allow_journal=["on fire$"], allow_failed_units=["^broken"]))
def test_allowed(vm):
    log(vm)
    fail_unit(vm)


@pytest.mark.kvm(gates=kvm.Gates(
    core_dumps=True, avc=True, allow_core_dumps=["python3"], allow_avc=['name="/etc/machine-id"']))
def test_allowed_others(hardened):
    dump(hardened)
    deny(hardened)


def test_restored(vm):
    with vm.savepoint():
        log(vm)
        fail_unit(vm)


def test_switched_off(vm):
    log(vm)
    vm.power_off()


@pytest.mark.kvm(allow_kernel_errors=["sysrq triggered crash"])
def test_crash(vm):
    log(vm)
    vm.crash()


def test_reboot(vm):
    log(vm)
    vm.reboot()


def test_cannot_be_asked(vm):
    vm.run(["chmod", "-x", "/usr/bin/journalctl"])


def test_guest_by_name(request):
    log(request.getfixturevalue("vm"))


@pytest.fixture(scope="class")
def changed(vm):
    log(vm)


class TestFixtureOfAClass:
    def test_that_sets_it_up(self, changed):
        pass

    def test_that_uses_the_guest(self, changed, vm):
        log(vm)

    @pytest.mark.kvm(gates=kvm.Gates(journal="notice"))
    def test_after_a_reset_to_what_the_fixture_did(self, changed, vm):
        assert "disk on fire" in vm.run("journalctl -p err").stdout


@kvm.guest
def own():
    return kvm.GuestSpec(memory="512MiB", vcpus=1)


@pytest.mark.kvm(gates=kvm.Gates(journal="notice"))
def test_what_a_guest_logs_while_it_starts(own):
    pass


def test_last(vm):
    vm.run("true")
"""
JOURNAL = "GuestUnhealthy: vm: messages of priority err in its journal: "
FAIL = {
    "test_journal": (JOURNAL, "disk on fire"),
    "test_units": ("GuestUnhealthy: vm: ", "broken.service loaded failed failed"),
    "test_dump_in_a_file": ("GuestUnhealthy: vm: core dumps: ", "/var/tmp/core"),
    "test_dump_that_a_program_takes": ("GuestUnhealthy: hardened: ", "SIGABRT"),
    "test_denial_in_the_log_of_auditd": ("GuestUnhealthy: hardened: denials: ", "type=AVC msg=audit("),
    "test_denial_in_the_journal": ("GuestUnhealthy: hardened: denials: ", " kernel: audit: type=1400 audit("),
    "test_fixture": (JOURNAL, "disk on fire"),
    "test_both": ("GuestUnhealthy: vm: oops in its kernel: BUG: Bad page state ", "disk on fire"),
    "test_own_failure": ("AssertionError: assert 'mine' == 'other'", "disk on fire"),
    "test_reboot": (JOURNAL, "disk on fire"),
    "test_that_sets_it_up": (JOURNAL, "disk on fire"),
    "test_that_uses_the_guest": (JOURNAL, "disk on fire"),
    "test_cannot_be_asked": ("GuestUnhealthy: vm: its gates cannot be looked at: ", "journalctl"),
    "test_guest_by_name": (JOURNAL, "disk on fire"),
}
"""What the failures say, and what they show."""
PASS = {
    "test_quiet",
    "test_without_gates",
    "test_dump_that_is_kept",
    "test_after_it",
    "test_teardown",
    "test_allowed",
    "test_allowed_others",
    "test_restored",
    "test_switched_off",
    "test_crash",
    "test_after_a_reset_to_what_the_fixture_did",
    "test_what_a_guest_logs_while_it_starts",
    "test_last",
}


def test_gates_fail_the_test_that_ran(outcome):
    assert outcome.names("failure") == set(FAIL), outcome.shown
    assert outcome.names("error") == set(), outcome.shown
    assert outcome.names("skipped") == {"test_expected"}
    assert set(outcome.cases) == {*PASS, *FAIL, "test_expected"}


@pytest.mark.parametrize("name", FAIL)
def test_a_failure_shows_what_was_found(outcome, name):
    text = outcome.text(name, "failure")
    says, shows = FAIL[name]
    assert says in text
    assert shows in text
    assert "harmless" not in text
    assert "pytest_kvm/" not in text
