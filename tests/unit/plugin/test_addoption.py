"""Command line before environment before ini, and mistakes named by their source."""

from __future__ import annotations

import pytest

from pytest_kvm.options import OPTIONS


def header_of(pytester, *arguments):
    pytester.makepyfile("def test(kvm_guests): pass")
    return pytester.runpytest("--collect-only", *arguments).stdout


def test_a_run_says_what_it_stands_on_once_it_knows_of_guests(pytester, tmp_path):
    lines = header_of(pytester, f"--kvm-cache-dir={tmp_path}", "--kvm-accel=tcg")
    lines.fnmatch_lines(
        [
            "collected 1 item",
            "kvm: accelerator tcg*",
            f"kvm: uri qemu:///embed, image debian-13, cache {tmp_path}",
        ]
    )
    lines = header_of(pytester, "-q")
    lines.no_fnmatch_line("kvm: *")


@pytest.mark.parametrize("arguments", [[], ["-k", "alone"], ["-n1"]], ids=["none", "deselected", "xdist"])
def test_a_run_without_guests_says_and_looks_at_nothing(pytester, tmp_path, monkeypatch, arguments):
    monkeypatch.setenv("PYTEST_KVM_CACHE_DIR", str(tmp_path / "cache"))
    uses = "def test_guest(kvm_guests): pass" if "-k" in arguments else ""
    pytester.makepyfile(f"def test_alone(): pass\n{uses}")
    result = pytester.runpytest_subprocess(*arguments)
    result.assert_outcomes(passed=1, deselected=1 if uses else 0)
    result.stdout.no_fnmatch_line("*kvm: *")
    assert not (tmp_path / "cache").exists()


def test_precedence(pytester, monkeypatch):
    pytester.makeini("[pytest]\nkvm_image = from-ini\nkvm_uri = test:///default\n")
    header_of(pytester).fnmatch_lines(["kvm: uri test:///default, image from-ini, *"])
    monkeypatch.setenv("PYTEST_KVM_IMAGE", "from-environment")
    header_of(pytester).fnmatch_lines(["kvm: uri test:///default, image from-environment, *"])
    lines = header_of(pytester, "--kvm-image=from-flag")
    lines.fnmatch_lines(["kvm: uri test:///default, image from-flag, *"])


@pytest.mark.parametrize("how", ["ini", "override"])
def test_a_folder_in_the_ini_file_begins_where_the_file_is(pytester, monkeypatch, how):
    pytester.makeini("[pytest]\n" + ("kvm_cache_dir = below/cache\n" if how == "ini" else ""))
    below = pytester.mkdir("sub")
    (below / "test_it.py").write_text("def test(kvm_guests): pass\n")
    monkeypatch.chdir(below)
    override = ["-o", "kvm_cache_dir=below/cache"] if how == "override" else []
    lines = pytester.runpytest("--collect-only", *override).stdout
    lines.fnmatch_lines([f"kvm: uri *, cache {pytester.path}/below/cache"])


@pytest.mark.parametrize(
    ("arguments", "ini", "variable", "message"),
    [
        (["--kvm-accel=fast"], "", None, "--kvm-accel: 'fast' is not one of auto, kvm, tcg"),
        ([], "kvm_timeout_factor = -1", None, "ini key kvm_timeout_factor: '-1' does not fit"),
        ([], "", ("PYTEST_KVM_BOOT_TIMEOUT", "soon"), "environment variable PYTEST_KVM_BOOT_TIMEOUT: 'soon'"),
        (["--kvm-cache-dir=~nobody-here/x"], "", None, "--kvm-cache-dir: '~nobody-here/x' does not fit"),
        ([], "kvm_run_dir = ~nobody-here", None, "ini key kvm_run_dir: '~nobody-here' does not fit"),
    ],
)
def test_a_wrong_value_names_its_source(pytester, monkeypatch, arguments, ini, variable, message):
    if ini:
        pytester.makeini(f"[pytest]\n{ini}\n")
    if variable:
        monkeypatch.setenv(*variable)
    result = pytester.runpytest(*arguments)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines([f"*{message}*"])


def test_an_account_without_a_home_is_told_what_to_name(pytester, monkeypatch):
    def no_home(*_, **__):
        raise RuntimeError("could not determine the home directory")

    monkeypatch.setattr("platformdirs.user_cache_path", no_home)
    result = pytester.runpytest_inprocess()
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*no home folder*", "*PYTEST_KVM_CACHE_DIR*"])
    assert pytester.runpytest_inprocess("--kvm-cache-dir=there").ret == pytest.ExitCode.NO_TESTS_COLLECTED


def test_every_option_is_in_the_help_with_its_other_spellings(pytester):
    text = " ".join(pytester.runpytest("--help").stdout.str().split())
    for option in OPTIONS:
        assert f"{option.flag}={option.metavar}" in text
        assert option.variable in text
        assert option.ini in text


def test_setup_plan_shows_guests_and_starts_none(pytester, tmp_path):
    pytester.makepyfile(
        "import pytest_kvm as kvm\n\n@kvm.guest(scope='module', params=['debian-12', 'debian-13'])\n"
        "def machine(request):\n    return kvm.GuestSpec(request.param)\n\n\ndef test(machine):\n    pass\n"
    )
    result = pytester.runpytest("--setup-plan", f"--kvm-cache-dir={tmp_path}")
    assert result.ret == 0
    result.stdout.fnmatch_lines(
        ["*SETUP    M machine[[]'debian-12'[]]*", "*SETUP    M machine[[]'debian-13'[]]*"]
    )
    assert list(tmp_path.iterdir()) == []
