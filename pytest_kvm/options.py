"""The options of a run, and the merging of their sources.

Command line, environment and ini file share one table of options. The first
source that has a value for an option wins. A field that the ``kvm`` marker sets
comes before all of them.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from pytest_kvm.errors import SpecError
from pytest_kvm.settings import (
    Accel,
    CacheMode,
    CloneTier,
    Dump,
    Keep,
    KernelPolicy,
    Limit,
    RamPlace,
    Settings,
    Timeouts,
)
from pytest_kvm.sizes import parse_kib

Lookup = Callable[["Option"], tuple[str, str | None]]
"""Returns how one source names an option (for messages), and the text it has for it, if any."""


def _path(text: str) -> Path:
    try:
        return Path(text).expanduser().absolute()
    except RuntimeError as error:  # ~ of an account that does not exist, or has no home
        raise ValueError(text) from error


def _positive(text: str) -> float:
    number = float(text)
    if not 0 < number < float("inf"):
        raise ValueError(text)
    return number


def _bytes(text: str) -> int:
    try:
        return parse_kib(text, field="size") * 1024
    except SpecError as error:
        raise ValueError(error.brief) from None


_WORDS: dict[str, Limit] = {"auto": "auto", "none": "none"}


def _memory_limit(text: str) -> Limit:
    if text in _WORDS:
        return _WORDS[text]
    mib = _bytes(text) // 1024**2
    if mib < 1:
        raise ValueError(text)
    return mib


def _number_limit(text: str) -> Limit:
    if text in _WORDS:
        return _WORDS[text]
    number = int(text)
    if number < 1:
        raise ValueError(text)
    return number


def _clones(text: str) -> int | None:
    if text == "auto":
        return None
    number = int(text)
    if number < 0:
        raise ValueError(text)
    return number


def _patterns(text: str) -> tuple[str, ...]:
    patterns = tuple(line.strip() for line in text.splitlines() if line.strip())
    try:
        for pattern in patterns:
            re.compile(pattern)
    except re.error as mistake:
        raise ValueError(text) from mistake
    return patterns


def _dumps(text: str) -> frozenset[str]:
    if text == "nothing":
        return frozenset()
    asked = frozenset(part.strip() for part in text.split(","))
    if not asked <= {*get_args(Dump)}:
        raise ValueError(text)
    return asked


@dataclass(frozen=True, kw_only=True)
class Option:
    """One option of a run."""

    name: str
    help: str
    metavar: str
    default: str
    """As the help text shows it."""
    parse: Callable[[str], Any] = str
    choices: tuple[str, ...] = ()

    @property
    def is_path(self) -> bool:
        """Whether the value is a file or folder; a relative path is resolved from its source's folder."""
        return self.parse is _path

    @property
    def flag(self) -> str:
        """Its name on the command line."""
        return "--kvm-" + self.name.replace("_", "-")

    @property
    def ini(self) -> str:
        """Its name in the ini file."""
        return f"kvm_{self.name}"

    @property
    def variable(self) -> str:
        """Its environment variable."""
        return f"PYTEST_KVM_{self.name.upper()}"


OPTIONS: tuple[Option, ...] = (
    Option(
        name="uri",
        metavar="URI",
        default="qemu:///embed",
        help="libvirt connection: qemu:///embed (no daemon), qemu:///session, qemu:///system or test:///default",
    ),
    Option(
        name="accel",
        metavar="ACCEL",
        choices=get_args(Accel),
        default="auto",
        help="auto takes KVM where it works and TCG elsewhere, kvm refuses TCG, tcg never uses KVM",
    ),
    Option(name="image", metavar="NAME", default="debian-13", help="image of specs that name none"),
    Option(
        name="cache_dir",
        metavar="DIR",
        parse=_path,
        default="$XDG_CACHE_HOME/pytest-kvm",
        help="images, templates and libvirt's capability cache, kept between runs",
    ),
    Option(
        name="run_dir",
        metavar="DIR",
        parse=_path,
        default="/var/tmp/pytest-kvm-UID",  # noqa: S108 - made private and checked before use
        help="runs keep overlays, sockets and logs in kvm-runs below it; at most 32 bytes long",
    ),
    Option(
        name="cache",
        metavar="MODE",
        choices=get_args(CacheMode),
        default="use",
        help="use starts guests from templates and makes those that are missing, refresh makes each once "
        "more, off boots every guest",
    ),
    Option(
        name="cache_size",
        metavar="SIZE",
        parse=_bytes,
        default="20GiB",
        help='what templates may take up together ("5GiB"); those used longest ago go first',
    ),
    Option(
        name="cache_ram",
        metavar="PLACE",
        choices=get_args(RamPlace),
        default="disk",
        help="where new templates keep their RAM: disk, or tmpfs where there is memory to spare",
    ),
    Option(
        name="clone",
        metavar="HOW",
        choices=get_args(CloneTier),
        default="auto",
        help="how guests start from templates: auto takes the fastest that works here, cow shares the "
        "template's RAM, snapshot loads a copy of it, cold boots",
    ),
    Option(
        name="pool",
        metavar="N",
        parse=_clones,
        default="auto",
        help="clones kept ready for each guest, or auto: one from a guest's second start on, at most 4 in "
        "all, while twice the guest's memory is free",
    ),
    Option(
        name="max_memory",
        metavar="SIZE",
        parse=_memory_limit,
        default="auto",
        help='memory of all guests on this machine together ("8GiB"), or none: no limit, or auto: the '
        "machine's or its container's memory but for an eighth, and never more than is available",
    ),
    Option(
        name="max_vcpus",
        metavar="N",
        parse=_number_limit,
        default="auto",
        help="virtual processors of all guests together, or none: no limit, or auto: ten for each processor",
    ),
    Option(
        name="max_guests",
        metavar="N",
        parse=_number_limit,
        default="none",
        help="how many guests there may be, or none: no limit",
    ),
    Option(
        name="admission_timeout",
        metavar="SECONDS",
        parse=_positive,
        default="600",
        help="how long a test waits for room for its guests, before the factor",
    ),
    Option(
        name="limits_dir",
        metavar="DIR",
        parse=_path,
        default="/var/tmp/pytest-kvm-UID/limits",  # noqa: S108 - made private and checked before use
        help="runs that are to count each other's guests note here what theirs have",
    ),
    Option(
        name="kernel_errors",
        metavar="POLICY",
        choices=get_args(KernelPolicy),
        default="fail",
        help="what becomes of a test if the kernel of one of its guests panics, oopses, stalls or runs out "
        "of memory: fail, warn in the summary of warnings, or ignore",
    ),
    Option(
        name="kernel_warnings",
        metavar="POLICY",
        choices=get_args(KernelPolicy),
        default="ignore",
        help="the same for what the kernel itself calls a WARNING",
    ),
    Option(
        name="allow_kernel_errors",
        metavar="REGEX",
        parse=_patterns,
        default="none",
        help="kernel errors and warnings in whose text the regular expression is found are expected; "
        "one on each line",
    ),
    Option(
        name="capture",
        metavar="WHEN",
        choices=get_args(Keep),
        default="never",
        help="never, on-failure, always: capture the frames on all segments during each test, and keep those "
        "of tests that failed, or of all",
    ),
    Option(
        name="artifacts",
        metavar="DIR",
        parse=_path,
        default="kvm-artifacts",
        help="folder for what is kept of tests, one folder for each test",
    ),
    Option(
        name="keep_artifacts",
        metavar="WHEN",
        choices=get_args(Keep),
        default="on-failure",
        help="never, on-failure, always: keep consoles, journals, screenshots and more of the guests of "
        "tests that failed, or of all",
    ),
    Option(
        name="dump",
        metavar="WHAT",
        parse=_dumps,
        default="nothing",
        help="what else to keep of these guests: nothing, or one or more of memory, disk and guest (all of "
        "it, for `pytest-kvm resume`), separated by commas",
    ),
    Option(
        name="artifacts_size",
        metavar="SIZE",
        parse=_bytes,
        default="4GiB",
        help='what is kept of tests may take up so much together ("500MiB"); the oldest goes first',
    ),
    Option(
        name="seed",
        metavar="SEED",
        default="new in each run",
        help="any text: faults of segments make the same random choices again; failed tests show it",
    ),
    Option(
        name="events",
        metavar="FILE",
        parse=_path,
        default="none",
        help="append a line of JSON to this file for each thing done to a guest: boot, clone, reset, …",
    ),
    Option(
        name="timeout_factor",
        metavar="FACTOR",
        parse=_positive,
        default="1 under KVM, 5 under TCG",
        help="multiplies the plugin's own time-outs, not those that a test or a spec names",
    ),
    Option(
        name="boot_timeout",
        metavar="SECONDS",
        parse=_positive,
        default="120",
        help="from power on to an SSH banner, before the factor",
    ),
)


def settings_from(sources: Sequence[Lookup]) -> Settings:
    """Merge sources into the run's settings; the first source that has a value for an option wins.

    Raises:
        SpecError: A value is not valid (the message says where it stands);
            or no cache folder is named, and the account has no home.
    """
    given = {option.name: value for option in OPTIONS for value in _values(option, sources)}
    named = [name for name in ("boot", "admission") if f"{name}_timeout" in given]
    timeouts = Timeouts(**{name: given.pop(f"{name}_timeout") for name in named})
    if "image" in given:
        given["default_image"] = given.pop("image")
    places: dict[str, Callable[[], Path]] = {
        "cache_dir": default_cache_dir,
        "run_dir": default_run_dir,
        "artifacts": Path("kvm-artifacts").absolute,
        "limits_dir": lambda: default_run_dir() / "limits",
    }
    for name in places.keys() - given.keys():
        given[name] = places[name]()
    return Settings(timeouts=timeouts, **given)


def from_environment(option: Option) -> tuple[str, str | None]:
    """Look an option up in the environment; see :data:`Lookup`."""
    return f"environment variable {option.variable}", os.environ.get(option.variable)


def default_cache_dir() -> Path:
    """Return ``$XDG_CACHE_HOME/pytest-kvm``, or ``~/.cache/pytest-kvm``.

    Raises:
        SpecError: The account has no home.
    """
    import platformdirs  # noqa: PLC0415 - not needed where the folder is named

    try:
        return platformdirs.user_cache_path("pytest-kvm", appauthor=False)
    except RuntimeError:
        raise SpecError(
            "no home folder for the cache: HOME is not set, and the account has none",
            resolution="name a folder: --kvm-cache-dir, PYTEST_KVM_CACHE_DIR or XDG_CACHE_HOME",
        ) from None


def default_run_dir() -> Path:
    """Return the parent of run folders.

    It is on disk, because overlays may grow to gigabytes, and ``/tmp`` and
    ``$XDG_RUNTIME_DIR`` are memory on many systems. It is short, because the
    path of a socket has at most 107 bytes (``unix(7)``).
    """
    return Path(f"/var/tmp/pytest-kvm-{os.getuid()}")  # noqa: S108 - made private and checked before use


def _values(option: Option, sources: Sequence[Lookup]) -> Iterator[Any]:
    """Yield the option's value; yield nothing if no source has one."""
    for lookup in sources:
        where, text = lookup(option)
        if not text:
            continue
        if option.choices and text not in option.choices:
            raise SpecError(f"{where}: {text!r} is not one of {', '.join(option.choices)}")
        try:
            yield option.parse(text)
        except ValueError:
            raise SpecError(f"{where}: {text!r} does not fit", resolution=option.help) from None
        return
