"""The seed that a failed test shows repeats its faults: on guests, in runs of their own."""

from __future__ import annotations

import re

import pytest

from tests.plugin.inner_suite import PAIR

SUITE = (
    PAIR
    + """

def test_all_pings_are_answered(lan, left, right):
    for guest, other in ((left, right), (right, left)):
        # So that guests send nothing by themselves, and each chance is for a ping.
        guest.run(["sysctl", "net.ipv6.conf.all.disable_ipv6=1"])
        card = guest.nics[0].device
        address, mac = other.address(lan), other.nics[0].mac
        guest.run(["ip", "neighbour", "replace", address, "lladdr", mac, "dev", card, "nud", "permanent"])
    lan.loss(0.5, link=right, direction="in")
    argv = ["ping", "-c", "40", "-i", "0.1", "-W", "5", right.address(lan)]
    said = left.run(argv, check=False).stdout
    answered = [line.split("icmp_seq=")[1].split()[0] for line in said.splitlines() if "icmp_seq=" in line]
    assert False, f"answered: {' '.join(answered)}."
"""
)


@pytest.fixture
def run(pytester):
    """Return a function that runs the suite, and returns which pings were answered, and the seed shown."""
    pytester.makepyfile(SUITE)

    def run(*arguments):
        result = pytester.runpytest_subprocess(*arguments, timeout=900)
        result.assert_outcomes(failed=1)
        output = result.stdout.str()
        answered = re.search(r"^E +AssertionError: answered: ([0-9 ]*)\.$", output, re.MULTILINE)
        seed = re.search(r"- faults of segments \(--kvm-seed=(\w+) repeats their random choices\) -", output)
        assert answered, output
        assert seed, output
        return answered[1].split(), seed[1]

    return run


def test_a_run_is_repeated_by_the_seed_that_it_has_shown(run):
    answered, seed = run()
    assert 5 < len(answered) < 35
    assert run(f"--kvm-seed={seed}") == (answered, seed)
    other, other_seed = run()
    assert other_seed != seed
    assert other != answered
