"""What becomes of a test when something has gone wrong in a guest: marker, spec and options say so."""

from __future__ import annotations

import logging
import threading
from types import SimpleNamespace

import pytest

import pytest_kvm as kvm
from pytest_kvm.handles.transcript import Transcript
from pytest_kvm.hypervisor.protocol import DomainState
from pytest_kvm.machine.kernel_reports import KernelReport
from pytest_kvm.provision.watched_kernels import WatchedKernels
from pytest_kvm.results import CommandResult
from tests.unit.plugin.kernels import Kernels

SUITE = """
import pytest
import pytest_kvm as kvm

def test_it(request):
    request.config.provoke()
"""


def report(kind, *lines, **fields):
    return KernelReport(kind=kind, stamp="1.000001", line=lines[0], text="\n".join(lines), **fields)


OOPS = report("oops", "BUG: Bad page state", "RIP: foo")
WARNING = report("warning", "WARNING: CPU: 0 PID: 1 at a.c:1 f")
EXCUSED = report("soft lockup", "stuck", excuse="the host")


@pytest.fixture
def run(pytester):
    def run(*reports, marker="", spec=None, options=(), source=SUITE, shell=None, machines=()):
        pytester.makepyfile(source.replace("\ndef test_it", f"\n{marker}\ndef test_it"))
        kernels = Kernels(spec or kvm.GuestSpec(), reports, shell=shell, machines=machines)
        # Here, a warning is an error.
        quiet = "-Wdefault::pytest_kvm.KernelErrorWarning"
        return pytester.runpytest_inprocess(quiet, "-p", "no:cacheprovider", *options, plugins=[kernels])

    return run


def test_an_error_fails_a_test_that_passed(run):
    result = run(OOPS)
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(
        ["*GuestUnhealthy: web: oops in its kernel: BUG: Bad page state", "*RIP: foo*"]
    )


def test_what_is_logged_while_guests_are_looked_at_is_in_the_report(run, monkeypatch):
    def look(self, guests):
        logging.getLogger("pytest_kvm.kernel").warning("web: its log cannot be read")

    monkeypatch.setattr(Kernels, "look", look)
    shown = run(OOPS).stdout
    shown.fnmatch_lines(["*GuestUnhealthy: web: oops*", "*Captured log call*", "*its log cannot be read*"])


@pytest.mark.parametrize(
    ("given", "outcome"),
    [
        ({"marker": '@pytest.mark.kvm(kernel_errors="ignore")'}, {"passed": 1}),
        ({"marker": '@pytest.mark.kvm(kernel_errors="warn")'}, {"passed": 1, "warnings": 1}),
        ({"spec": kvm.GuestSpec(kernel_errors="ignore")}, {"passed": 1}),
        ({"options": ["--kvm-kernel-errors=warn"]}, {"passed": 1, "warnings": 1}),
        (
            {
                "marker": '@pytest.mark.kvm(kernel_errors="fail")',
                "spec": kvm.GuestSpec(kernel_errors="ignore"),
                "options": ["--kvm-kernel-errors=warn"],
            },
            {"failed": 1},
        ),
        (
            {"spec": kvm.GuestSpec(kernel_errors="ignore"), "options": ["--kvm-kernel-errors=fail"]},
            {"passed": 1},
        ),
        ({"marker": '@pytest.mark.kvm(allow_kernel_errors=["RIP: foo"])'}, {"passed": 1}),
        ({"spec": kvm.GuestSpec(allow_kernel_errors=["Bad page"])}, {"passed": 1}),
        ({"options": ["--kvm-allow-kernel-errors=nothing\nBad .* state"]}, {"passed": 1}),
        ({"options": ["--kvm-allow-kernel-errors=nothing"]}, {"failed": 1}),
        ({"marker": "@pytest.mark.xfail(raises=kvm.GuestUnhealthy, strict=True)"}, {"xfailed": 1}),
    ],
)
def test_the_marker_comes_before_the_spec_and_the_spec_before_the_option(run, given, outcome):
    run(OOPS, **given).assert_outcomes(**outcome)


@pytest.mark.parametrize(
    ("given", "outcome"),
    [
        ({}, {"passed": 1}),
        ({"marker": '@pytest.mark.kvm(kernel_warnings="fail")'}, {"failed": 1}),
        ({"spec": kvm.GuestSpec(kernel_warnings="warn")}, {"passed": 1, "warnings": 1}),
        ({"options": ["--kvm-kernel-warnings=fail"]}, {"failed": 1}),
    ],
)
def test_a_warning_has_a_policy_of_its_own(run, given, outcome):
    run(WARNING, **given).assert_outcomes(**outcome)


def test_what_is_the_hosts_fault_warns_instead(run):
    run(EXCUSED).assert_outcomes(passed=1, warnings=1)
    run(EXCUSED, options=["--kvm-kernel-errors=ignore"]).assert_outcomes(passed=1)


def test_what_is_the_hosts_fault_fails_no_test_even_where_warnings_are_errors(run):
    result = run(EXCUSED, options=["-Werror::pytest_kvm.KernelErrorWarning"])
    result.assert_outcomes(passed=1, warnings=1)
    result = run(EXCUSED, options=["-Wignore::pytest_kvm.KernelErrorWarning"])
    result.assert_outcomes(passed=1, warnings=0)


def test_a_warning_that_is_an_error_fails_the_test(run):
    options = ["--kvm-kernel-errors=warn", "-Werror::pytest_kvm.KernelErrorWarning"]
    other = report("oops", "BUG: another")
    shown = run(OOPS, other, options=options)
    shown.assert_outcomes(failed=1)
    shown.stdout.fnmatch_lines(["*web: oops in its kernel: BUG: Bad page state", "*BUG: another"])


def test_of_many_reports_the_first_are_shown_whole(run):
    many = [report("oops", f"BUG: {number}", f"RIP: {number}") for number in range(6)]
    shown = run(*many).stdout.str()
    assert "web: oops in its kernel: BUG: 0 (and 5 more)" in shown
    assert [number for number in range(6) if f"RIP: {number}" in shown] == [0, 1, 2]
    assert [number for number in range(6) if f"BUG: {number}" in shown] == [*range(6)]


FAILING = SUITE + "    assert 'mine' == 'other'\n"


def test_a_tests_own_failure_is_followed_by_the_reports(run):
    result = run(OOPS, source=FAILING)
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*assert 'mine' == 'other'", "*kernel of web: oops*", "*RIP: foo"])
    assert "RIP: foo" not in run(OOPS, source=FAILING, options=["--kvm-kernel-errors=ignore"]).stdout.str()


LATE = """
import pytest

@pytest.fixture
def late(request):
    yield
    request.config.provoke()

def test_it(late):
    pass
"""


def test_what_teardown_provokes_is_its_error(run):
    result = run(OOPS, source=LATE)
    result.assert_outcomes(passed=1, errors=1)
    result.stdout.fnmatch_lines(["*GuestUnhealthy: web: oops in its kernel: BUG: Bad page state"])


def test_of_a_warning_that_is_an_error_and_an_error_both_are_told(run):
    options = ["--kvm-kernel-warnings=warn", "-Werror::pytest_kvm.KernelErrorWarning"]
    shown = run(WARNING, OOPS, options=options)
    shown.assert_outcomes(failed=1)
    shown.stdout.fnmatch_lines(
        ["*GuestUnhealthy: web: oops*", "web: warning in its kernel: WARNING: CPU: 0 *"]
    )


SKIPS = ["pytest.skip('too late')", "raise unittest.SkipTest('too late')"]


@pytest.mark.parametrize("skip", SKIPS)
def test_a_skip_hides_no_error(run, skip):
    source = f"import unittest\n{SUITE}    {skip}\n"
    run(OOPS, source=source).assert_outcomes(failed=1)
    run(source=source).assert_outcomes(skipped=1)


SKIPS_IN_FIXTURE = """
import pytest

@pytest.fixture
def late(request):
    if {teardown}:
        yield
    request.config.provoke()
    pytest.skip("too late")
    yield

def test_it(late):
    pass
"""


@pytest.mark.parametrize(("teardown", "passed"), [(False, 0), (True, 1)])
def test_a_skip_in_a_fixture_hides_none_either(run, teardown, passed):
    source = SKIPS_IN_FIXTURE.format(teardown=teardown)
    run(OOPS, source=source).assert_outcomes(passed=passed, errors=1)
    run(source=source).assert_outcomes(passed=passed, skipped=1)


@pytest.mark.parametrize(
    ("marker", "source"),
    [
        ("@pytest.mark.xfail", FAILING),
        ("@pytest.mark.xfail(raises=AssertionError)", FAILING),
        ("", SUITE + "    pytest.xfail('known')\n"),
    ],
)
def test_a_failure_that_is_expected_stays_so_and_teardown_inherits_nothing(run, marker, source):
    run(OOPS, marker=marker, source=source).assert_outcomes(xfailed=1)


CASE = """
import unittest
import pytest

class TestIt(unittest.TestCase):
    @pytest.fixture(autouse=True)
    def config(self, request):
        self.provoke = request.config.provoke

    def test_it(self):
        self.provoke()
        OUTCOME
"""


@pytest.mark.parametrize(
    ("outcome", "counts", "shown"),
    [
        ("pass", {"failed": 1}, ["*GuestUnhealthy: web: oops*", "*RIP: foo*"]),
        ("self.fail('own')", {"failed": 1}, ["*AssertionError: own*", "*GuestUnhealthy*", "*RIP: foo*"]),
        ("self.skipTest('too late')", {"failed": 1}, ["*GuestUnhealthy: web: oops*", "*RIP: foo*"]),
    ],
)
def test_methods_of_a_test_case_are_tests_like_others(run, outcome, counts, shown):
    result = run(OOPS, source=CASE.replace("OUTCOME", outcome))
    result.assert_outcomes(**counts)
    result.stdout.fnmatch_lines(shown)


def test_a_failure_that_a_test_case_expects_stays_so(run):
    expected = CASE.replace("    def test_it", "    @unittest.expectedFailure\n    def test_it")
    run(OOPS, source=expected.replace("OUTCOME", "self.fail()")).assert_outcomes(xfailed=1)


# ------------------------------------------------------------ gates


class Shell:
    """Answers for a guest that has failed units."""

    def __init__(self, *units, fails=None):
        self._answer = "".join(f"{unit} loaded failed failed\n" for unit in units)
        self._fails = fails
        self.asked = 0

    def run(self, command, *, user, timeout):
        assert (command[0], user) == ("systemctl", "root")
        self.asked += 1
        if self._fails is not None:
            raise self._fails
        return CommandResult(argv=tuple(command), exit_code=0, stdout_bytes=self._answer.encode())


UNITS = kvm.GuestSpec(gates=kvm.Gates(failed_units=True))
FORBIDS_UNITS = "@pytest.mark.kvm(gates=kvm.Gates(failed_units=True))"
ALLOWS_ONE = "@pytest.mark.kvm(gates=kvm.Gates(failed_units=True, allow_failed_units=['^a.service']))"


@pytest.mark.parametrize(
    ("marker", "spec", "units", "outcome"),
    [
        ("", kvm.GuestSpec(), ["a.service"], {"passed": 1}),
        ("", UNITS, [], {"passed": 1}),
        ("", UNITS, ["a.service"], {"failed": 1}),
        (FORBIDS_UNITS, kvm.GuestSpec(), ["a.service"], {"failed": 1}),
        ("@pytest.mark.kvm(gates=kvm.Gates())", UNITS, ["a.service"], {"passed": 1}),
        (ALLOWS_ONE, UNITS, ["a.service"], {"passed": 1}),
        (ALLOWS_ONE, UNITS, ["a.service", "b.service"], {"failed": 1}),
    ],
)
def test_the_markers_gates_take_the_place_of_the_specs(run, marker, spec, units, outcome):
    run(marker=marker, spec=spec, shell=Shell(*units)).assert_outcomes(**outcome)


def test_a_failure_shows_the_lines_of_a_gate_and_how_to_allow_them(run):
    result = run(spec=UNITS, shell=Shell(*(f"u{number:02}.service" for number in range(45))))
    result.stdout.fnmatch_lines(
        [
            "*GuestUnhealthy: web: failed units: u00.service loaded failed failed",
            "web, failed units:",
            "u39.service *",
            "… and 5 more",
            "*allow_journal=*",
        ]
    )
    assert "u40.service" not in result.stdout.str()


def test_reports_and_gates_are_one_failure(run):
    result = run(OOPS, spec=UNITS, shell=Shell("a.service"))
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(
        ["*web: oops in its kernel: BUG: Bad page state (and 1 more)", "*RIP: foo", "a.service *"]
    )


def test_a_warning_that_is_an_error_hides_no_gate(run):
    options = ["--kvm-kernel-errors=warn", "-Werror::pytest_kvm.KernelErrorWarning"]
    result = run(OOPS, spec=UNITS, shell=Shell("a.service"), options=options)
    result.stdout.fnmatch_lines(["*GuestUnhealthy: web: failed units: a.service*"])


@pytest.mark.parametrize("source", [FAILING, CASE.replace("OUTCOME", "self.fail('own')")])
def test_a_tests_own_failure_is_followed_by_the_gates(run, source):
    shell = Shell("a.service")
    result = run(spec=UNITS, source=source, shell=shell)
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*AssertionError: *", "*a.service loaded failed failed"])
    assert shell.asked == 1


@pytest.mark.parametrize("skip", SKIPS)
def test_a_skip_hides_no_gate(run, skip):
    source = f"import unittest\n{SUITE}    {skip}\n"
    run(spec=UNITS, source=source, shell=Shell("a.service")).assert_outcomes(failed=1)


@pytest.mark.parametrize(("teardown", "passed", "asked"), [(False, 0, 0), (True, 1, 1)])
def test_gates_are_looked_at_after_the_call_only(run, teardown, passed, asked):
    shell = Shell()
    source = SKIPS_IN_FIXTURE.format(teardown=teardown)
    run(spec=UNITS, source=source, shell=shell).assert_outcomes(passed=passed, skipped=1)
    assert shell.asked == asked


@pytest.mark.parametrize(
    ("error", "shown"),
    [
        (kvm.SshUnavailable("web: no connection"), "web: no connection"),
        (
            kvm.CommandFailed(
                "web: exit code 127",
                result=CommandResult(argv="", exit_code=127, stderr_bytes=b"systemctl: not found\n"),
            ),
            "web: exit code 127: systemctl: not found",
        ),
    ],
)
def test_a_guest_that_cannot_be_asked_fails_the_test(run, error, shown):
    result = run(spec=UNITS, shell=Shell(fails=error))
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines([f"*GuestUnhealthy: web: its gates cannot be looked at: {shown}"])
    assert "allow_journal" not in result.stdout.str()


def test_a_guest_that_does_not_answer_is_not_asked(run, domain, machine):
    shell = Shell()
    domain.end("QEMU died")
    source = f"{SUITE}    assert 'mine' == 'other'\n"
    run(spec=UNITS, source=source, shell=shell, machines=[machine]).assert_outcomes(failed=1)
    assert shell.asked == 0
    run(spec=UNITS, source=source, shell=shell).assert_outcomes(failed=1)
    assert shell.asked == 1


# ------------------------------------------------------------ which guests are looked at


class Kernel:
    """Notes what it is asked."""

    def __init__(self, *, fails=False):
        self.asked = []
        self._fails = fails

    def skip_log(self):
        self.asked.append("skip log")

    def look(self):
        self.asked.append("look")
        if self._fails:
            raise OSError("no console")
        return [OOPS]

    def skip_console(self):
        self.asked.append("skip console")


class Named:
    """A guest's handle, as a key."""

    name = "web"


@pytest.fixture
def watch():
    def watch(kernel):
        kernels, guest = WatchedKernels(), Named()
        machine = None if kernel is None else SimpleNamespace(kernel=kernel)
        kernels.watch(guest, SimpleNamespace(if_ready=machine), spec=kvm.GuestSpec(), transcript=Transcript())
        return kernels, guest

    return watch


def test_a_guest_that_the_test_has_is_looked_at_whether_or_not_it_was_used(watch):
    kernel = Kernel()
    kernels, guest = watch(kernel)
    kernels.begin_test()
    kernels.note_use(guest)
    kernels.look([guest])
    kernels.look([guest])
    assert kernel.asked == ["skip console", "look", "look"]
    assert [each.report for each in kernels.take()] == [OOPS] * 2
    assert kernels.take() == []


def test_a_guest_that_is_used_is_looked_at_wherever_the_test_has_it_from(watch):
    kernel = Kernel()
    kernels, guest = watch(kernel)
    kernels.look([])
    assert kernel.asked == []
    kernels.note_use(guest)
    kernels.look([])
    assert kernel.asked == ["look"]


@pytest.mark.parametrize("note", ["note_use", "note_test"])
def test_what_was_logged_while_tests_did_not_have_a_guest_is_nobodys(watch, note):
    kernel = Kernel()
    kernels, guest = watch(kernel)
    for _ in range(2):
        kernels.begin_test()
        getattr(kernels, note)(guest)
    assert "skip log" not in kernel.asked
    kernels.begin_test()
    kernels.begin_test()
    kernel.asked.clear()
    getattr(kernels, note)(guest)
    getattr(kernels, note)(guest)
    assert kernel.asked == ["skip log"]


def test_guests_are_looked_at_at_the_same_time():
    both = threading.Barrier(2, timeout=60)

    class Meets(Kernel):
        def look(self):
            both.wait()
            return super().look()

    kernels, guests = WatchedKernels(), [Named(), Named()]
    for guest in guests:
        machines = SimpleNamespace(if_ready=SimpleNamespace(kernel=Meets()))
        kernels.watch(guest, machines, spec=kvm.GuestSpec(), transcript=Transcript())
    kernels.look(guests)
    assert len(kernels.take()) == 2


def test_a_guest_is_looked_at_before_it_is_removed_and_never_again(watch):
    kernel = Kernel()
    kernels, guest = watch(kernel)
    kernels.note_use(guest)
    kernels.forget(guest)
    kernels.look([guest])
    kernels.forget(guest)
    assert kernel.asked == ["look"]
    assert [each.guest for each in kernels.take()] == ["web"]


@pytest.mark.parametrize(
    ("state", "has_panicked", "answers"),
    [
        (DomainState.RUNNING, False, True),
        (DomainState.RUNNING, True, False),
        (DomainState.PAUSED, False, False),
        (DomainState.SHUTOFF, False, False),
    ],
)
def test_only_guests_of_the_test_that_run_are_asked_for_their_gates(state, has_panicked, answers):
    kernels, guest, spec = WatchedKernels(), Named(), kvm.GuestSpec()
    machine = SimpleNamespace(
        kernel=SimpleNamespace(has_panicked=has_panicked, skip_console=list),
        domain=SimpleNamespace(state=lambda: state),
    )
    kernels.watch(guest, SimpleNamespace(if_ready=machine), spec=spec, transcript=Transcript())
    kernels.begin_test()
    assert kernels.that_can_answer() == []
    assert [each.machine for each in kernels.that_are_ready([guest])] == [machine]
    kernels.note_test(guest)
    assert [each.machine for each in kernels.that_can_answer()] == ([machine] if answers else [])
    assert [each.machine for each in kernels.that_are_ready()] == [machine]


def test_a_guest_of_which_nobody_knows_whether_it_runs_is_asked(caplog):
    def state():
        raise kvm.DomainFailed("libvirt is gone")

    kernels, guest, spec = WatchedKernels(), Named(), kvm.GuestSpec()
    machine = SimpleNamespace(
        name="web", kernel=SimpleNamespace(has_panicked=False), domain=SimpleNamespace(state=state)
    )
    kernels.watch(guest, SimpleNamespace(if_ready=machine), spec=spec, transcript=Transcript())
    assert [each.machine for each in kernels.that_can_answer()] == [machine]
    assert "web: nobody knows whether it runs: libvirt is gone" in caplog.text


def test_nothing_is_looked_at_while_a_run_is_closed(watch):
    kernel = Kernel()
    kernels, guest = watch(kernel)
    kernels.close()
    kernels.forget(guest)
    assert kernel.asked == []


def test_a_guest_that_boots_reports_nothing(watch):
    kernels, guest = watch(None)
    kernels.begin_test()
    kernels.note_use(guest)
    kernels.look([guest])
    assert kernels.take() == []


def test_what_cannot_be_read_fails_nothing(watch, caplog):
    kernels, guest = watch(Kernel(fails=True))
    kernels.look([guest])
    assert kernels.take() == []
    assert "web: what its kernel reports cannot be read: no console" in caplog.text


def test_what_was_found_before_a_test_is_not_its_own(watch):
    kernels, guest = watch(Kernel())
    kernels.look([guest])
    kernels.begin_test()
    assert kernels.take() == []
