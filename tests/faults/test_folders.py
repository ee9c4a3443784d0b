"""Cache, run and artifact folders that cannot be written to, are full, or vanish in the midst of a run."""

from __future__ import annotations

from itertools import chain

import pytest

from tests import suite_process
from tests.faults.suites import HEAD, JOINED
from tests.own_disk import on_small_disk, with_read_only

READ_ONLY = "its file system is read-only"

ONE_GUEST = f"""{HEAD}
def test_here(machine):
    machine.run("true")
"""

CAPTURED = f"""{JOINED}
def test_here(joined):
    joined.run("true")
"""

VANISHING = f"""{JOINED}
import shutil
from pathlib import Path

@kvm.guest(scope="module")
def kept():
    return small()

@pytest.fixture
def cache(pytestconfig):
    return Path(pytestconfig.getoption("--kvm-cache-dir"))

@pytest.fixture
def runs(pytestconfig):
    return Path(pytestconfig.getoption("--kvm-run-dir"), "kvm-runs")

def remove_all(folders):
    removed = [folder for folder in folders if folder.is_dir()]
    for folder in removed:
        shutil.rmtree(folder)
    assert removed
"""

TEMPLATE_VANISHES = f"""{VANISHING}
def test_a_guest_that_runs_does_not_need_its_template(kept, cache):
    kept.run("touch /root/changed")
    remove_all((cache / "templates" / "entries").iterdir())
    assert kept.run("ls /root").stdout == "changed\\n"

def test_it_is_made_anew_for_a_reset(kept):
    assert kept.run("ls /root").stdout == ""

def test_and_others_start_from_it(machine, cache):
    machine.run("true")
    remove_all((cache / "templates" / "entries").iterdir())

def test_what_is_derived_from_it_is_booted(joined):
    joined.run("true")
"""

CACHE_VANISHES = f"""{VANISHING}
def test_a_guest_that_runs_goes_on_until_somebody_logs_in(kept, cache):
    point = kept.savepoint()
    kept.run("touch /root/changed")
    remove_all([cache])
    kept.run("ls -lR /usr/share/doc >/dev/null")
    point.restore()
    with pytest.raises(kvm.errors.HostError, match="kept: its SSH key .* is gone: somebody has"):
        kept.run("true")

def test_a_reset_needs_the_image(kept):
    kept.run("true")
"""

RUN_VANISHES = f"""{VANISHING}
def test_a_guest_that_runs_goes_on(kept, runs):
    point = kept.savepoint()
    kept.run("touch /root/changed")
    remove_all(runs.iterdir())
    kept.run("ls -lR /usr/share/doc >/dev/null")
    with pytest.raises(kvm.errors.HostError, match=f"the folder of kept, {{runs}}/.*, is gone: somebody has"):
        point.restore()

def test_a_reset_needs_it(kept):
    kept.run("true")

def test_a_guest_needs_it(machine):
    machine.run("true")
"""


def check_told(output):
    """Check that the set-up failed, in words."""
    assert " 1 error" in output.splitlines()[-1], output
    assert "Traceback" not in output, output
    assert "/pytest_kvm/" not in output, "no frames of the plugin"


# ------------------------------------------------------------ read-only


@pytest.fixture
def empty(tmp_path):
    """A folder for a cache that has nothing in it."""
    (empty := tmp_path / "empty").mkdir()
    return empty


def test_an_image_needs_a_cache_that_can_be_written_to(suites, empty):
    suite = suites.start(ONE_GUEST, f"--kvm-cache-dir={empty}", within=with_read_only(empty))
    suite.wait()
    check_told(suite.output)
    assert (
        f"HostError: the folder of images {empty}/images cannot be made: Read-only file system"
        in suite.output
    )
    assert "→ choose another with --kvm-cache-dir" in suite.output


def test_so_does_a_template(loners, cache):
    suite = loners.start(ONE_GUEST, within=with_read_only(cache.folder))
    suite.wait()
    check_told(suite.output)
    assert f"HostError: the boot cache {cache.templates} cannot be written to: {READ_ONLY}\n" in suite.output


def test_a_boot_does_not(loners, cache):
    folders = [cache.folder, *((cache.folder / name).resolve() for name in ("images", "libvirt"))]
    within = chain.from_iterable(map(with_read_only, folders))
    suite = loners.start(ONE_GUEST, "--kvm-cache=off", within=[*within])
    assert suite.wait() == pytest.ExitCode.OK, suite.output[-5000:]


def test_a_run_needs_a_folder_that_can_be_written_to(suites, run_dir):
    suite = suites.start(ONE_GUEST, within=with_read_only(run_dir))
    suite.wait()
    check_told(suite.output)
    assert f"HostError: the run folder {run_dir} cannot be written to: {READ_ONLY}\n" in suite.output
    assert "→ choose another with --kvm-run-dir" in suite.output


def test_captures_that_cannot_be_kept_fail_no_test(suites, tmp_path):
    (artifacts := tmp_path / "artifacts").mkdir()
    suite = suites.start(
        CAPTURED,
        "--kvm-capture=always",
        f"--kvm-artifacts={artifacts}",
        "-rA",
        within=with_read_only(artifacts),
    )
    assert suite.wait() == pytest.ExitCode.OK, suite.output[-5000:]
    assert "lan.pcapng is not kept: [Errno 30] Read-only file system" in suite.output


@pytest.mark.parametrize(
    ("arguments", "exit_code", "said"),
    [
        (["doctor"], 0, "warn  space for images: {cache} cannot be written to: its file system is read-only"),
        (
            ["images", "build", "debian-13"],
            1,
            "pytest-kvm: the folder of images {cache}/images cannot be made: Read-only file system",
        ),
    ],
)
def test_commands_tell_it_in_words(empty, run_dir, arguments, exit_code, said):
    places = [f"--kvm-cache-dir={empty}", f"--kvm-run-dir={run_dir}"]
    code, output = suite_process.run_command(*places, *arguments, within=with_read_only(empty))
    assert code == exit_code, output
    assert f"{said.format(cache=empty)}\n" in output
    assert "→ choose another with --kvm-cache-dir\n" in output
    assert "Traceback" not in output


# ------------------------------------------------------------ full


@pytest.mark.parametrize(
    ("disk", "said"),
    [
        ("size=800m", "1200 MiB are needed in {cache}/images/work/debian-13."),
        ("nr_inodes=400", "the file system of {cache}/images/work/debian-13."),
    ],
)
def test_no_image_is_begun_that_has_no_room(suites, empty, disk, said):
    suite = suites.start(ONE_GUEST, f"--kvm-cache-dir={empty}", within=on_small_disk(empty, disk))
    suite.wait()
    check_told(suite.output)
    assert (
        f"NoCapacity: no room on the disk to make image debian-13: {said.format(cache=empty)}" in suite.output
    )
    assert "→ make room there, or choose another disk with --kvm-cache-dir" in suite.output
    assert "downloading" not in suite.output


def test_a_template_that_has_no_room_for_its_files_costs_a_boot(loners, cache):
    suite = loners.start(ONE_GUEST, within=on_small_disk(cache.templates, "nr_inodes=12"))
    assert suite.wait() == pytest.ExitCode.OK, suite.output[-5000:]
    assert "1 cold boot" in suite.output
    assert f"no room for a template: the file system of {cache.templates} has room for" in suite.output


def test_captures_that_have_no_room_fail_no_test(suites, tmp_path):
    (artifacts := tmp_path / "artifacts").mkdir()
    options = ["--kvm-capture=always", f"--kvm-artifacts={artifacts}", "-rA"]
    suite = suites.start(CAPTURED, *options, within=on_small_disk(artifacts, "nr_inodes=2"))
    assert suite.wait() == pytest.ExitCode.OK, suite.output[-5000:]
    assert "lan.pcapng is not kept: [Errno 28] No space left on device" in suite.output


# ------------------------------------------------------------ vanishing


def test_a_template_that_vanishes_is_made_anew(loners):
    suite = loners.start(TEMPLATE_VANISHES)
    assert suite.wait() == pytest.ExitCode.OK, suite.output[-5000:]
    assert "4 passed" in suite.output
    assert "somebody has removed files of the template" in suite.output


def test_a_cache_that_vanishes(loners, cache):
    suite = loners.start(CACHE_VANISHES)
    suite.wait()
    assert " 1 passed, 1 error in " in suite.output, suite.output[-5000:]
    assert f"ImageError: image debian-13: {cache.folder}/images/blobs/" in suite.output
    assert "is gone: somebody has removed it\n→ remove nothing from the cache while tests run" in suite.output
    assert not cache.folder.exists()


def test_a_run_folder_that_vanishes(suites, run_dir):
    suite = suites.start(RUN_VANISHES)
    suite.wait()
    assert " 1 passed, 2 errors in " in suite.output, suite.output[-5000:]
    assert suite.output.count(f"HostError: the folder of this run, {run_dir}/kvm-runs/") == 2
    suite.wait_gone()
