"""Command line before environment before ini, and mistakes named by their source."""

from __future__ import annotations

import pytest

from pytest_kvm.options import OPTIONS


def header(pytester, *arguments):
    pytester.makepyfile("def test(): pass")
    return pytester.runpytest("--collect-only", *arguments).stdout


def test_the_header_says_what_the_run_stands_on(pytester, tmp_path):
    lines = header(pytester, f"--kvm-cache-dir={tmp_path}", "--kvm-accel=tcg")
    lines.fnmatch_lines(
        [
            "kvm: accelerator tcg*",
            f"kvm: uri qemu:///embed, image debian-13, cache {tmp_path}",
        ]
    )


def test_precedence(pytester, monkeypatch):
    pytester.makeini("[pytest]\nkvm_image = from-ini\nkvm_uri = test:///default\n")
    header(pytester).fnmatch_lines(["kvm: uri test:///default, image from-ini, *"])
    monkeypatch.setenv("PYTEST_KVM_IMAGE", "from-environment")
    header(pytester).fnmatch_lines(["kvm: uri test:///default, image from-environment, *"])
    header(pytester, "--kvm-image=from-flag").fnmatch_lines(["kvm: uri test:///default, image from-flag, *"])


@pytest.mark.parametrize(
    ("arguments", "ini", "variable", "message"),
    [
        (["--kvm-accel=fast"], "", None, "--kvm-accel: 'fast' is not one of auto, kvm, tcg"),
        ([], "kvm_timeout_factor = -1", None, "ini key kvm_timeout_factor: '-1' does not fit"),
        ([], "", ("PYTEST_KVM_BOOT_TIMEOUT", "soon"), "environment variable PYTEST_KVM_BOOT_TIMEOUT: 'soon'"),
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
