"""What is kept of segments after tests, in runs of their own."""

from __future__ import annotations

import pytest

from pytest_kvm.plugin.file_names import place_of
from pytest_kvm.switch.pcapng import CaptureReader
from tests.plugin.inner_suite import PAIR

SUITE = (
    PAIR
    + """

@pytest.mark.parametrize("name", ["a/b"])
def test_fails(lan, left, right, name):
    left.nics[0].capture()
    left.run(["ping", "-c", "1", "-W", "20", "right"])
    assert not lan.nics


def test_passes(lan, left):
    lan.capture()


@pytest.fixture
def broken(left):
    raise LookupError


def test_set_up(broken):
    pass
"""
)


WITHOUT_GUESTS = """
import pytest
import pytest_kvm as kvm


@kvm.network(scope="module")
def lan():
    return kvm.NetworkSpec()


def test_first(lan):
    lan.capture()
    assert False


def test_made_in_the_test(lan, kvm_networks):
    kvm_networks.make()
    lan.capture().stop()
    assert False


@pytest.fixture
def left_open(lan):
    yield
    raise LookupError


def test_teardown(left_open):
    pass
"""


@pytest.fixture
def run(pytester):
    def run(*arguments):
        pytester.makepyfile(SUITE)
        result = pytester.runpytest_subprocess(*arguments, timeout=900)
        result.assert_outcomes(passed=1, failed=1, errors=1)
        kept = sorted(path for path in pytester.path.rglob("*.pcapng"))
        return result, {str(path.relative_to(pytester.path)): path for path in kept}

    return run


def test_captures_of_tests_that_failed_are_kept(run, pytester):
    result, kept = run("--kvm-capture=on-failure")
    set_up = "kvm-artifacts/test_captures_of_tests_that_failed_are_kept.py/test_set_up"
    fails = f"kvm-artifacts/{place_of(f'{pytester.path.name[:-1]}.py::test_fails[a/b]')}"
    assert list(kept) == [f"{fails}/lan-left.pcapng", f"{fails}/lan.pcapng", f"{set_up}/lan.pcapng"]
    result.stdout.fnmatch_lines(["*- captures of segments -*", f"*/{set_up}/lan.pcapng"])
    assert f"{pytester.path}/{fails}/lan.pcapng" in result.stdout.lines
    with kept[f"{fails}/lan.pcapng"].open("rb") as file:
        frames = list(CaptureReader(file))
    assert {each.link for each in frames} == {"left", "right"}
    assert any(each.frame[23] == 1 for each in frames), "ICMP"


def test_captures_of_all_tests_are_kept_elsewhere(run, pytester):
    _, kept = run("--kvm-capture=always", "--kvm-artifacts=there")
    assert {path.split("/")[0] for path in kept} == {"there"}
    assert any("test_passes" in path for path in kept)


def test_those_that_a_test_has_made_are_kept_unasked(run, pytester):
    fails = f"kvm-artifacts/{place_of(f'{pytester.path.name[:-1]}.py::test_fails[a/b]')}"
    _, kept = run()
    assert list(kept) == [f"{fails}/lan-left.pcapng"]


def test_nothing_is_kept_if_that_is_asked_for(run):
    _, kept = run("--kvm-keep-artifacts=never")
    assert kept == {}


def test_each_failed_test_has_a_folder(pytester):
    pytester.makepyfile(test_it=WITHOUT_GUESTS)
    result = pytester.runpytest_subprocess("--kvm-capture=on-failure", "--kvm-accel=tcg")
    result.assert_outcomes(passed=1, failed=2, errors=1)
    kept = sorted(str(path.relative_to(pytester.path)) for path in pytester.path.rglob("*.pcapng"))
    assert kept == [
        "kvm-artifacts/test_it.py/test_first/lan-2.pcapng",
        "kvm-artifacts/test_it.py/test_first/lan.pcapng",
        "kvm-artifacts/test_it.py/test_made_in_the_test/lan-2.pcapng",
        "kvm-artifacts/test_it.py/test_made_in_the_test/lan.pcapng",
        "kvm-artifacts/test_it.py/test_made_in_the_test/net1.pcapng",
    ]


def test_files_that_cannot_be_kept_fail_no_test(pytester):
    pytester.makepyfile(WITHOUT_GUESTS)
    (pytester.path / "there").touch()
    result = pytester.runpytest_subprocess(
        "--kvm-capture=always", "--kvm-artifacts=there", "--kvm-accel=tcg", "-rP"
    )
    result.assert_outcomes(passed=1, failed=2, errors=1)
    result.stdout.fnmatch_lines(["*- captures of segments -*", "lan.pcapng is not kept: *Not a directory*"])
