"""The example suites pass on real guests, also as an ordinary user, and leave nothing.

The quickstart is a test of the core.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from pytest_kvm.host.run_folder import RUNS
from pytest_kvm.plugin.session import settings_stashed
from scripts.folders import own_folder
from tests.ordinary_user import ordinary_user


@pytest.fixture
def run_dir():
    """A parent for run folders that is short and this test's own; somebody keeps notes in there."""
    with own_folder("kvm-") as folder:
        notes = Path(folder, RUNS, "notes")
        notes.mkdir(parents=True)
        notes.parent.chmod(0o700)
        (notes / "file").write_text("kept")
        yield folder
        assert (notes / "file").read_text() == "kept"


@pytest.fixture
def suite(pytester, project_root, run_dir):
    """Run an example suite as its reader would, in a pytest process of its own."""

    def run(name, *arguments):
        shutil.copytree(project_root / "example_suites" / name, pytester.path, dirs_exist_ok=True)
        result = pytester.runpytest_subprocess("-v", f"--kvm-run-dir={run_dir}", *arguments, timeout=900)
        left = {path.name for path in (run_dir / RUNS).iterdir()}
        assert left == {"guard", "notes"}, "the run left files, or removed those of others"
        result.stdout.fnmatch_lines(
            [f"kvm: not made by pytest-kvm and left alone: {run_dir / RUNS / 'notes'}*"]
        )
        return result

    return run


def test_packages(suite):
    suite("packages").assert_outcomes(passed=2)


def test_several_guests_under_xdist(suite):
    suite("several_guests", "-n", "2").assert_outcomes(passed=2)


def test_router_nat(suite):
    suite("router_nat").assert_outcomes(passed=8)


def test_dhcp_server(suite):
    suite("dhcp_server").assert_outcomes(passed=5)


def test_vrrp_failover(suite):
    suite("vrrp_failover").assert_outcomes(passed=3)


def test_wireguard_tunnel(suite):
    suite("wireguard_tunnel").assert_outcomes(passed=5)


def test_replicated_postgresql(suite):
    result = suite("replicated_postgresql", "--setup-show")
    result.assert_outcomes(passed=5)
    assert set_ups(result, "replication") == 1


def test_etcd_cluster(suite):
    result = suite("etcd_cluster", "--setup-show")
    result.assert_outcomes(passed=5)
    assert set_ups(result, "formed") == 2, "not again after the test alone that switches a node off"


def test_nfs_server(suite):
    result = suite("nfs_server", "--setup-show")
    result.assert_outcomes(passed=6)
    assert set_ups(result, "mounted") == 2, "not again after the test alone that switches the server off"


def set_ups(result, fixture):
    """Return how often a module-scoped fixture was set up."""
    return sum(f"SETUP    M {fixture}" in line for line in result.outlines)


@pytest.mark.parametrize(
    ("suites", "passed"),
    [
        (("router_nat", "dhcp_server"), 13),
        (("vrrp_failover", "wireguard_tunnel"), 8),
        (("replicated_postgresql",), 5),
        (("etcd_cluster",), 5),
        (("nfs_server",), 6),
    ],
    ids=lambda value: "+".join(value) if isinstance(value, tuple) else "",
)
def test_labs_as_an_ordinary_user(pytestconfig, suites, passed):
    with ordinary_user(settings_stashed(pytestconfig)) as user:
        said = user.run_suites(*suites).stdout
    assert f"= {passed} passed in " in said
