"""What a failed test's report says of faults, in runs without guests."""

from __future__ import annotations

SUITE = """
import pytest


@pytest.fixture(scope="module", autouse=True)
def slow(request):
    from pytest_kvm.plugin.session import run_of
    from pytest_kvm.spec.network import NetworkSpec

    segments = run_of(request.config).segments
    lan = segments.make("lan", NetworkSpec())
    with lan.delay(0.1):
        yield lan
    segments.remove(lan)


def test_fails_under_faults(slow):
    with slow.loss(0.5):
        pass
    slow.partition([])
    assert False


def test_fails_under_the_fixtures_only(slow):
    assert False


def test_many(slow):
    for _ in range(100):
        with slow.loss(0.25):
            pass
    assert len(slow.faults) == 100


def test_mistake(slow):
    slow.loss(2)


def test_passes(slow):
    assert len(slow.faults) == 1


def test_predicate(slow, kvm_networks):
    other = kvm_networks.make()
    other.drop(lambda packet: True)
    with pytest.raises(ZeroDivisionError), other.duplicate(1):
        1 / 0
"""


def test_a_failed_test_shows_faults_and_their_seed(pytester):
    pytester.makepyfile(SUITE)
    result = pytester.runpytest("--kvm-seed=lucky", "--kvm-accel=tcg")
    result.assert_outcomes(passed=2, failed=4)
    title = "*- faults of segments (--kvm-seed=lucky repeats their random choices) -*"
    result.stdout.fnmatch_lines(
        [
            "*_ test_fails_under_faults _*",
            title,
            "lan: delay(0.1)",
            "lan: loss(0.5) (undone)",
            "lan: partition nobody",
            "*_ test_fails_under_the_fixtures_only _*",
            "*- faults of segments -*",
            "lan: delay(0.1)",
            "*_ test_many _*",
            title,
            "… 61 before",
            "*_ test_mistake _*",
            ">*slow.loss(2)",
            "E *SpecError: lan.loss: 2 is not a probability",
            "E *from 0.0 (never) to 1.0 (always)",
        ],
        consecutive=False,
    )
    shown = [line for line in result.stdout.lines if line.startswith("lan: loss")]
    assert shown == ["lan: loss(0.5) (undone)"] + ["lan: loss(0.25) (undone)"] * 40


def test_runs_have_seeds_of_their_own(pytester):
    pytester.makepyfile(SUITE)
    seeds = {
        line.partition("--kvm-seed=")[2].split()[0]
        for _ in range(2)
        for line in pytester.runpytest("--kvm-accel=tcg", "-k", "many").stdout.lines
        if "--kvm-seed=" in line
    }
    assert len(seeds) == 2
