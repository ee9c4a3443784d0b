"""What the text of an option means."""

from __future__ import annotations

from pathlib import Path

import pytest

from pytest_kvm.errors import SpecError
from pytest_kvm.options import OPTIONS, settings_from
from pytest_kvm.settings import Settings


def settings_of(**given: str) -> Settings:
    return settings_from([lambda option: (option.flag, given.get(option.name))])


def test_the_boot_cache_as_it_is_without_a_word():
    unsaid = settings_of()
    assert unsaid == Settings(
        cache_dir=unsaid.cache_dir,
        run_dir=unsaid.run_dir,
        artifacts=Path.cwd() / "kvm-artifacts",
        limits_dir=unsaid.run_dir / "limits",
    )


def test_the_stated_default_is_the_default():
    """Each default that is a value, said aloud, changes nothing."""
    values = {"cache", "cache_size", "cache_ram", "clone", "pool", "accel", "image", "uri", "boot_timeout"}
    values |= {
        "max_memory",
        "max_vcpus",
        "max_guests",
        "admission_timeout",
        "kernel_errors",
        "kernel_warnings",
    }
    said = {option.name: option.default for option in OPTIONS if option.name in values}
    assert said.keys() == values
    assert settings_of(**said) == settings_of()


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("cache", "refresh", "refresh"),
        ("cache", "off", "off"),
        ("cache_size", "1.5GiB", 1536 * 1024**2),
        ("cache_ram", "tmpfs", "tmpfs"),
        ("clone", "cow", "cow"),
        ("clone", "cold", "cold"),
        ("pool", "auto", None),
        ("pool", "0", 0),
        ("pool", "12", 12),
        ("cache_dir", "/somewhere", Path("/somewhere")),
        ("max_memory", "1.5GiB", 1536),
        ("max_memory", "none", "none"),
        ("max_vcpus", "auto", "auto"),
        ("max_vcpus", "3", 3),
        ("max_guests", "1", 1),
        ("kernel_errors", "warn", "warn"),
        ("kernel_warnings", "fail", "fail"),
        ("allow_kernel_errors", "\n  a.*b\n\n  c  \n", ("a.*b", "c")),
        ("limits_dir", "/somewhere", Path("/somewhere")),
        ("dump", "memory", {"memory"}),
        ("dump", "disk, guest", {"disk", "guest"}),
        ("dump", "nothing", frozenset()),
    ],
)
def test_values(name, text, value):
    assert getattr(settings_of(**{name: text}), name) == value


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("cache", "yes"),
        ("cache_size", "20"),
        ("cache_size", "0GiB"),
        ("cache_size", "many"),
        ("cache_ram", "ram"),
        ("clone", "fast"),
        ("pool", "-1"),
        ("pool", "1.5"),
        ("pool", "all"),
        ("max_memory", "8"),
        ("max_memory", "0GiB"),
        ("max_memory", "512KiB"),
        ("max_vcpus", "0"),
        ("max_guests", "-1"),
        ("max_guests", "many"),
        ("admission_timeout", "0"),
        ("kernel_errors", "error"),
        ("dump", "disks"),
        ("dump", "memory;disk"),
        ("dump", "memory,"),
        ("dump", "nothing,memory"),
        ("allow_kernel_errors", "(unclosed"),
    ],
)
def test_what_cannot_be_meant_is_told_with_its_source(name, text):
    with pytest.raises(SpecError) as failure:
        settings_of(**{name: text})
    assert failure.value.brief.startswith(f"--kvm-{name.replace('_', '-')}: '{text}'")
