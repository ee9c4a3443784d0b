"""Hosts on which something that guests need is missing, too old, or does not work."""

from __future__ import annotations

import importlib.util
import re
import shutil
from itertools import chain
from pathlib import Path

import pytest

from pytest_kvm.host.install_hints import NEEDS
from tests import suite_process
from tests.faults.suites import HEAD
from tests.own_disk import on_small_disk, with_in_place, without

TWO_TESTS = f"""{HEAD}
@pytest.mark.parametrize("turn", range(2))
def test_here(machine, turn):
    machine.run("true")
"""


def where(program):
    """Return the path of a program of this host, which other paths may be links to."""
    found = shutil.which(program)
    assert found is not None
    return Path(found).resolve()


@pytest.fixture
def program(tmp_path):
    """Return a function that writes a program."""

    def write(script):
        path = tmp_path / "program"
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)
        return path

    return write


def check_refused(suite, error):
    """Check that set-up failed for each test, with the same words."""
    suite.wait()
    output = suite.output
    assert " 2 errors in " in output.splitlines()[-1], output
    assert len(re.findall(f"^{error}", output, re.MULTILINE)) == 2, output
    assert "Traceback" not in output, output
    assert "/pytest_kvm/" not in output, "no frames of the plugin"


# ------------------------------------------------------------ missing


def test_qemu_is_named(suites, tmp_path):
    """It is told before an image is built."""
    (empty := tmp_path / "empty").mkdir()
    suite = suites.start(TWO_TESTS, f"--kvm-cache-dir={empty}", within=without(where("qemu-system-x86_64")))
    check_refused(suite, r"MissingDependency: libvirt finds no QEMU for \w+ \(qemu:///embed\)\n→ .*qemu")
    assert not (empty / "images").exists()


def test_qemu_img_is_named(suites):
    suite = suites.start(TWO_TESTS, within=without(where("qemu-img")))
    check_refused(suite, "MissingDependency: the program 'qemu-img' is not installed\n→ .*qemu")
    assert "power on" not in suite.output


def test_libvirts_driver_is_named(suites):
    folders = {
        path.parent for glob in NEEDS["libvirt-qemu-driver"].files for path in Path("/").glob(glob[1:])
    }
    suite = suites.start(
        TWO_TESTS, within=chain.from_iterable(on_small_disk(each, "size=1m") for each in folders)
    )
    check_refused(
        suite, "MissingDependency: libvirt could not open qemu:///embed.*\n→ libvirt's QEMU driver is not"
    )


def test_libvirts_python_module_is_named(suites):
    module = importlib.util.find_spec("libvirtmod")
    suite = suites.start(TWO_TESTS, within=without(Path(module.origin)))
    check_refused(
        suite, "MissingDependency: libvirt's Python module cannot be loaded: .*\n→ pip install libvirt-python"
    )


@pytest.mark.parametrize("program", ["qemu-system-x86_64", "qemu-img"])
def test_doctor_names_what_is_missing(cache, run_dir, program):
    places = [f"--kvm-cache-dir={cache.folder}", f"--kvm-run-dir={run_dir}"]
    code, output = suite_process.run_command(*places, "doctor", within=without(where(program)))
    assert code == 1, output
    name = {"qemu-system-x86_64": "QEMU"}.get(program, program)
    assert re.search(f"^fail  {name}: not installed\n +→ .*qemu", output, re.MULTILINE), output


# ------------------------------------------------------------ too old


def test_a_qemu_that_is_too_old_is_named(loners, cache):
    """libvirt takes the version from what it noted when it asked QEMU."""
    places = [f"--kvm-cache-dir={cache.folder}", f"--kvm-run-dir={loners.run_dir}"]
    code, output = suite_process.run_command(*places, "doctor")
    assert code == 0, output
    notes = cache.folder / "libvirt"
    noted = notes.resolve()
    notes.unlink()
    shutil.copytree(noted, notes)
    for note in notes.glob("*.xml"):
        note.write_text(re.sub("<version>.*</version>", "<version>6002000</version>", note.read_text()))
    suite = loners.start(TWO_TESTS)
    check_refused(
        suite,
        r"MissingDependency: QEMU \(/.*, qemu:///embed\) is version 6\.2\.0; 7\.2\.0 is the oldest .*\n→ ",
    )


def test_a_qemu_img_that_is_too_old_is_named(suites, program):
    old = program("echo 'qemu-img version 5.2.0 (Debian 1:5.2+dfsg-11+deb11u5)'")
    suite = suites.start(TWO_TESTS, within=with_in_place(old, where("qemu-img")))
    check_refused(
        suite, r"MissingDependency: qemu-img is version 5\.2\.0; 7\.2\.0 is the oldest that will do\n→ "
    )


# ------------------------------------------------------------ does not work


def test_a_qemu_that_does_not_run_is_named(loners, program):
    said = "error while loading shared libraries: libslirp.so.0"
    broken = program(f"echo '{said}' >&2; exit 127")
    suite = loners.start(TWO_TESTS, within=with_in_place(broken, where("qemu-system-x86_64")))
    check_refused(suite, f"HypervisorError: libvirt could not .*{said}")


def test_a_qemu_img_that_does_not_run_is_named(suites, program):
    broken = program("echo 'cannot execute' >&2; exit 126")
    suite = suites.start(TWO_TESTS, within=with_in_place(broken, where("qemu-img")))
    check_refused(suite, "HostCommandFailed: qemu-img exited with 126\n.*--version\ncannot execute\n")


@pytest.fixture
def without_kvm():
    """The words before a command for which /dev/kvm opens and runs nothing, or is not there."""
    return without(Path("/dev/kvm")) if Path("/dev/kvm").exists() else []


def test_kvm_that_was_asked_for_is_an_error(suites, without_kvm):
    suite = suites.start(TWO_TESTS, "--kvm-accel=kvm", within=without_kvm)
    check_refused(suite, "KvmUnavailable: KVM was asked for and does not work here: /dev/kvm does not ")


def test_a_guest_needs_no_kvm(suites, without_kvm):
    suite = suites.start(TWO_TESTS, within=without_kvm)
    suite.wait()
    assert " 2 passed in " in suite.output, suite.output
    assert "accelerator tcg (no KVM: /dev/kvm does not " in suite.output
