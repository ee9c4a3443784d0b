"""What tests and fixtures did to a real guest is there for whom it should be, and for nobody else."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET

import pytest

from tests.plugin import scope_suite

REFUSED = "*SavepointRefused: vm: no savepoint between what fixture server did and test_refused: *sleep 1000*"

FAILING = """
import pytest
import pytest_kvm as kvm


@kvm.guest(scope="module")
def vm():
    return kvm.GuestSpec(memory="512MiB", vcpus=1)


@pytest.fixture(scope="module")
def base(vm):
    vm.run("echo base >> /root/log")


def test_a(vm, base):
    vm.run("echo a >> /root/log")
    assert vm.read_text("/root/log") == "nothing"


def test_b(vm, base):
    assert vm.read_text("/root/log") == "base\\n"
    vm.power_off()


def test_c(vm, base):
    assert vm.read_text("/root/log") == "base\\n"
"""

DEBUGGER = """
class Debugger:
    quitting = False

    def reset(self):
        pass

    def interaction(self, frame, error):
        innermost = getattr(error, "__traceback__", error)
        while innermost.tb_next:
            innermost = innermost.tb_next
        vm = innermost.tb_frame.f_locals.get("vm")
        if vm is not None:
            print("debugger sees", vm.read_text("/root/log").split())
            vm.run("echo debugger >> /root/log")
"""


@pytest.fixture
def run(pytester):
    def run(*arguments):
        return pytester.runpytest_subprocess(*arguments, timeout=600)

    return run


def test_all_scopes(pytester, run):
    scope_suite.write(pytester.path)
    result = run("-v", "--junit-xml=junit.xml")
    result.assert_outcomes(passed=13, errors=2)
    result.stdout.fnmatch_lines([REFUSED])
    result.stdout.fnmatch_lines(["ERROR *TestHalfWay::test_broken*", "ERROR *TestServer::test_refused*"])
    resets = r"\d+ savepoints median \d\.\d+ s, \d+ resets median \d\.\d+ s"
    result.stdout.re_match_lines([rf"kvm: 1 guest, .*{resets}"])
    properties = {
        case.get("name"): {each.get("name") for each in case.iter("property")}
        for case in ET.parse(pytester.path / "junit.xml").getroot().iter("testcase")
    }
    assert all("kvm_guest_vm" in names for case, names in properties.items())
    assert "kvm_reset_vm" in properties["test_again"]
    assert "kvm_reset_vm" not in properties["test_second"]


def test_workers_have_guests_of_their_own(pytester, run):
    scope_suite.write(pytester.path)
    result = run("-n", "2", "--dist", "loadfile", "-v")
    result.assert_outcomes(passed=13, errors=2)
    text = result.stdout.str()
    assert len(re.findall(r"^kvm: \d guests?, ", text, re.MULTILINE)) == 1
    result.stdout.re_match_lines([r"\[gw\d\] vm: .* clone", r"kvm: 2 guests, .* resets median"])


def test_a_failed_test_alone_finds_the_guest_as_it_was(pytester, run):
    pytester.makepyfile(FAILING)
    first = run("-x")
    first.assert_outcomes(failed=1)
    first.stdout.fnmatch_lines(["*AssertionError: assert 'base\\na\\n' == 'nothing'*"])
    again = run("--lf")
    again.assert_outcomes(failed=1)
    again.stdout.fnmatch_lines(["*AssertionError: assert 'base\\na\\n' == 'nothing'*"])


def test_the_debugger_holds_the_guest_as_the_test_left_it(pytester, run):
    pytester.makepyfile(FAILING)
    pytester.makepyfile(kvm_debugger=DEBUGGER)
    result = run("--pdb", "--pdbcls=kvm_debugger:Debugger", "-p", "kvm_debugger")
    result.assert_outcomes(failed=1, passed=2)
    result.stdout.fnmatch_lines(["debugger sees [[]'base', 'a'[]]"])
