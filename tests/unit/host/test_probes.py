from __future__ import annotations

import errno
import fcntl
import os
import stat
import subprocess
import sys
from dataclasses import replace

import pytest

from pytest_kvm.errors import KvmUnavailable
from pytest_kvm.host import accelerator, probes
from pytest_kvm.host import install_hints as packages
from pytest_kvm.host.accelerator import KvmProbe
from tests.conftest import ROOT

# ---------------------------------------------------------------- KVM


@pytest.fixture
def device(tmp_path, monkeypatch):
    """A /dev/kvm that opens and answers as it should."""
    file = tmp_path / "kvm"
    file.touch()
    monkeypatch.setattr(accelerator, "_DEVICE", file)
    monkeypatch.setattr(fcntl, "ioctl", lambda _device, _request: 12)
    return file


@pytest.fixture
def qemu(tmp_path, monkeypatch):
    """A program in QEMU's place; the test writes what it does."""
    program = tmp_path / "bin/qemu-system-x86_64"
    program.parent.mkdir()
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")

    def does(script):
        program.write_text(f"#!/bin/sh\necho run >>{tmp_path}/runs\n{script}\n")
        program.chmod(program.stat().st_mode | stat.S_IXUSR)

    does.runs = lambda: (tmp_path / "runs").read_text().count("run")
    return does


def test_kvm_is_usable_when_the_test_guest_came_through(device, qemu, tmp_path):
    qemu("exit 85")
    assert accelerator.kvm_usable(tmp_path) == KvmProbe(usable=True, reason="a test guest ran")


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        (
            "echo 'failed to set MSR 0x10a' >&2; kill -ABRT $$",
            "a test guest did not run: failed to set MSR 0x10a",
        ),
        ("exit 1", "a test guest did not run: exit status 1"),
        ("exit 0", "a test guest did not run: exit status 0"),
        ("exit 87", "KVM here emulates each instruction of a test guest"),
    ],
)
def test_a_device_that_only_answers_is_not_usable(device, qemu, tmp_path, script, reason):
    qemu(script)
    assert accelerator.kvm_usable(tmp_path) == KvmProbe(usable=False, reason=reason)


def test_a_guest_that_hangs_is_given_up(device, qemu, tmp_path, monkeypatch):
    monkeypatch.setattr(accelerator, "_LONGEST_RUN", 0.2)
    qemu("exec sleep 60")
    assert accelerator.kvm_usable(tmp_path).reason == "a test guest hung for 0 s"


def test_the_verdict_is_kept_until_something_changes(device, qemu, tmp_path):
    qemu("exit 85")
    assert accelerator.kvm_usable(tmp_path).usable
    assert accelerator.kvm_usable(tmp_path).usable
    assert qemu.runs() == 1
    qemu("exit 1 # another QEMU")
    assert not accelerator.kvm_usable(tmp_path).usable
    assert qemu.runs() == 2


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"key": 1}', "\x00"])
def test_a_damaged_note_is_replaced(device, qemu, tmp_path, text):
    qemu("exit 85")
    (tmp_path / "kvm-probe.json").write_text(text)
    assert accelerator.kvm_usable(tmp_path).usable
    assert qemu.runs() == 1


def test_a_cache_that_cannot_be_written_only_costs_time(device, qemu, tmp_path):
    qemu("exit 85")
    (tmp_path / "cache").write_text("a file is in the way")
    assert accelerator.kvm_usable(tmp_path / "cache").usable


def test_without_a_device_nothing_is_run(device, qemu, tmp_path):
    device.unlink()
    probe = accelerator.kvm_usable(tmp_path)
    assert (probe.usable, probe.reason) == (False, "/dev/kvm does not exist")
    assert "--device /dev/kvm" in probe.remedy


@pytest.mark.parametrize(
    ("code", "reason", "remedy"),
    [
        (errno.EACCES, "may not be opened by this user", "udev"),
        (errno.ENODEV, "does not open: No such device", "firmware"),
        (errno.EIO, "does not open: Input/output error", ""),
    ],
)
def test_a_device_that_does_not_open_has_a_reason(device, tmp_path, monkeypatch, code, reason, remedy):
    def refuse(path, flags):
        raise OSError(code, os.strerror(code), path)

    monkeypatch.setattr(os, "open", refuse)
    probe = accelerator.kvm_usable(tmp_path)
    assert reason in probe.reason
    assert remedy in probe.remedy


def test_a_device_of_another_kind_is_not_kvm(device, tmp_path, monkeypatch):
    monkeypatch.setattr(fcntl, "ioctl", lambda _device, _request: 11)
    assert accelerator.kvm_usable(tmp_path).reason == "/dev/kvm speaks version 11, not 12"


def test_the_rom_leaves_qemu_with_the_code_that_is_expected(tmp_path):
    """The same ROM, run by QEMU's own translator, which works everywhere."""
    tcg = tmp_path / "qemu"
    tcg.write_text('#!/bin/sh\nshift 4\nexec qemu-system-x86_64 -accel tcg "$@"\n')
    tcg.chmod(0o755)
    assert accelerator._run_test_guest(str(tcg)).usable


def test_the_rom_tells_emulation_by_the_time_it_takes(tmp_path, monkeypatch):
    """With a limit that no processor keeps, every one looks as if each instruction were emulated."""
    limit, none = (100_000).to_bytes(4, "little"), bytes(4)
    assert accelerator._CODE.count(limit) == 1
    monkeypatch.setattr(accelerator, "_CODE", accelerator._CODE.replace(limit, none))
    tcg = tmp_path / "qemu"
    tcg.write_text('#!/bin/sh\nshift 4\nexec qemu-system-x86_64 -accel tcg "$@"\n')
    tcg.chmod(0o755)
    probe = accelerator._run_test_guest(str(tcg))
    assert probe == KvmProbe(usable=False, reason="KVM here emulates each instruction of a test guest")


# ---------------------------------------------------------------- the accelerator


@pytest.fixture
def verdict(monkeypatch):
    def is_(probe):
        monkeypatch.setattr(accelerator, "kvm_usable", lambda _cache_dir: probe)

    return is_


NO_KVM = KvmProbe(usable=False, reason="/dev/kvm does not exist", remedy="modprobe kvm_intel")


def test_auto_takes_kvm_where_it_works(verdict, tmp_path):
    verdict(KvmProbe(usable=True, reason="a test guest ran"))
    assert accelerator.choose_accelerator("auto", cache_dir=tmp_path).kind == "kvm"


def test_auto_takes_tcg_elsewhere_and_says_why(verdict, tmp_path):
    verdict(NO_KVM)
    chosen = accelerator.choose_accelerator("auto", cache_dir=tmp_path)
    assert (chosen.kind, chosen.reason) == ("tcg", "no KVM: /dev/kvm does not exist")


def test_kvm_where_it_does_not_work_is_an_error_with_a_remedy(verdict, tmp_path):
    verdict(NO_KVM)
    with pytest.raises(KvmUnavailable, match="/dev/kvm does not exist") as caught:
        accelerator.choose_accelerator("kvm", cache_dir=tmp_path)
    assert caught.value.resolution == "modprobe kvm_intel"
    verdict(replace(NO_KVM, remedy=""))
    with pytest.raises(KvmUnavailable) as caught:
        accelerator.choose_accelerator("kvm", cache_dir=tmp_path)
    assert caught.value.resolution


def test_tcg_is_taken_without_asking(monkeypatch, tmp_path):
    monkeypatch.setattr(accelerator, "kvm_usable", lambda _cache_dir: pytest.fail("asked"))
    assert accelerator.choose_accelerator("tcg", cache_dir=tmp_path).kind == "tcg"


# ---------------------------------------------------------------- facts


def test_every_fact_that_is_not_fine_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", "/nonexistent")
    monkeypatch.setattr(packages, "is_met", lambda _need: False)
    facts = list(probes.all_facts(cache_dir=tmp_path, run_dir=tmp_path))
    assert len({fact.name for fact in facts}) == len(facts)
    silent = [fact for fact in facts if fact.severity == "error" and not fact.remedy]
    assert not silent
    assert "error" in {fact.severity for fact in facts}


@pytest.mark.parametrize(
    ("printed", "severity", "seen"),
    [
        ("QEMU emulator version 7.2.22 (Debian 1:7.2)", "ok", "7.2.22"),
        ("QEMU emulator version 10.0.0", "ok", "10.0.0"),
        ("QEMU emulator version 6.2.0", "error", "6.2.0"),
        ("something else", "error", "unknown"),
    ],
)
def test_qemu_has_to_be_new_enough(qemu, printed, severity, seen):
    qemu(f"echo '{printed}'")
    fact = probes.program_fact("QEMU", "qemu-system-x86_64", need="qemu-system")
    assert fact.severity == severity
    assert seen in fact.seen


@pytest.mark.parametrize(
    ("line", "enough"),
    [("tester:100000:65536", True), ("tester:1:10", False), ("other:1:65536", False), ("tester:1:x", False)],
)
def test_subordinate_ids_are_needed_to_build_as_an_ordinary_user(tmp_path, monkeypatch, line, enough):
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setenv("LOGNAME", "tester")
    monkeypatch.setattr(probes, "_output_of", lambda *_argv: "")
    monkeypatch.setattr(packages, "is_met", lambda _need: True)
    subuid, namespaces = tmp_path / "subuid", tmp_path / "max"
    subuid.write_text(f"# comment\n{line}\n")
    namespaces.write_text("1000\n")
    fact = probes.rootless_build_fact(subuid, namespaces)
    assert (fact.severity == "ok") is enough
    namespaces.write_text("0\n")
    assert "switched off" in probes.rootless_build_fact(subuid, namespaces).seen


def test_nested_guests_are_seen_in_the_modules_switch(tmp_path):
    assert probes.nested_fact(tmp_path).seen.startswith("off")
    switch = tmp_path / "kvm_amd/parameters/nested"
    switch.parent.mkdir(parents=True)
    switch.write_text("1\n")
    assert probes.nested_fact(tmp_path).seen == "kvm_amd: on"


# ---------------------------------------------------------------- packages


def test_a_bare_python_prints_what_is_missing():
    ran = subprocess.run(
        [sys.executable, "-I", "-S", ROOT / "pytest_kvm/host/install_hints.py", "--missing"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.stderr == ""
    assert ran.returncode == (1 if ran.stdout else 0)
