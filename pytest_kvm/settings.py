"""The settings of a run, merged from command line, environment and ini file.

The plugin and the command line both build one :class:`Settings`; every layer
below receives it and reads no other source.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

Accel = Literal["auto", "kvm", "tcg"]
CacheMode = Literal["use", "refresh", "off"]
CloneTier = Literal["auto", "cow", "snapshot", "cold"]
RamPlace = Literal["disk", "tmpfs"]
Keep = Literal["never", "on-failure", "always"]
"""Of which tests something is kept."""
Dump = Literal["memory", "disk", "guest"]
"""What is large and kept of guests only if it is asked for."""
KernelPolicy = Literal["fail", "warn", "ignore"]
"""What becomes of a test if a guest's kernel reports an error or a warning."""
Limit = int | Literal["auto", "none"]
"""What all guests of this host may have together; ``auto``: what the host has for them."""

TCG_FACTOR = 5.0
"""How many times longer a guest may take when QEMU translates its code (TCG).

A boot takes five to ten times as long as under KVM. The time-outs below are
generous already, so the lower end is enough.
"""


@dataclass(frozen=True, kw_only=True)
class Timeouts:
    """Deadlines in seconds, as they apply under KVM."""

    boot: float = 120.0
    """From power on to an SSH banner."""
    login: float = 30.0
    """From the banner to the first authenticated session."""
    cloud_init: float = 240.0
    """From login to the end of cloud-init's final stage."""
    command: float = 300.0
    """A command for which the caller names no time-out."""
    shutdown: float = 60.0
    """From asking the guest to power off to the domain's end."""
    agent: float = 20.0
    """One guest agent call."""
    packet: float = 30.0
    """A packet that a test waits for."""
    admission: float = 600.0
    """Room for guests, which others have to give back."""

    def scaled(self, factor: float) -> Timeouts:
        """Return the same deadlines multiplied by ``factor``."""
        return replace(self, **{name: getattr(self, name) * factor for name in self.__dataclass_fields__})


@dataclass(frozen=True, kw_only=True)
class Settings:
    """One run's settings."""

    cache_dir: Path
    """Images, templates and libvirt's capability cache, which are kept between runs."""
    run_dir: Path
    """Parent of this run's own folder: overlays, seeds, sockets, logs.

    Short, because a socket path has at most 107 bytes (``unix(7)``).
    """
    uri: str = "qemu:///embed"
    accel: Accel = "auto"
    default_image: str = "debian-13"
    timeout_factor: float | None = None
    """None: 1 under KVM and :data:`TCG_FACTOR` under TCG."""
    timeouts: Timeouts = Timeouts()
    cache: CacheMode = "use"
    """``refresh`` makes each template that this run needs once more, ``off`` neither uses nor makes any."""
    cache_size: int = 20 * 1024**3
    """Bytes that all templates together may take up; those used longest ago are removed first."""
    cache_ram: RamPlace = "disk"
    """Where templates' RAM files are: ``tmpfs`` is faster, and the files take up host memory."""
    clone: CloneTier = "auto"
    """How guests are started from templates; ``auto`` probes for the fastest that works."""
    pool: int | None = None
    """Spare clones for each guest, started ahead of need; None: one from its second start on, while there
    is memory for it."""
    max_memory: Limit = "auto"
    """MiB of memory that all guests may have together."""
    max_vcpus: Limit = "auto"
    """Virtual processors that all guests may have together."""
    max_guests: Limit = "none"
    """How many guests there may be."""
    limits_dir: Path | None = None
    """Folder in which runs note what their guests have; None: ``limits`` in ``run_dir``."""
    kernel_errors: KernelPolicy = "fail"
    """What becomes of a test if the kernel of one of its guests panics, oopses, stalls or runs out of
    memory."""
    kernel_warnings: KernelPolicy = "ignore"
    """The same for what the kernel itself calls a warning."""
    allow_kernel_errors: tuple[str, ...] = ()
    """Regular expressions: errors and warnings in whose text one of them is found are expected."""
    capture: Keep = "never"
    """Of which tests the frames on segments are captured and kept."""
    artifacts: Path = Path("kvm-artifacts")
    """Folder for what is kept of tests."""
    keep_artifacts: Keep = "on-failure"
    """Of which tests it is kept what their guests can tell."""
    dump: frozenset[Dump] = frozenset()
    """What is kept of these guests beside that."""
    artifacts_size: int = 4 * 1024**3
    """Bytes that all that is kept of tests may take up; the oldest is removed first."""
    seed: str | None = None
    """Makes the random choices of segments' faults repeatable; None: the run chooses one."""
    events: Path | None = None
    """File that gets one line of JSON for each thing done to a guest; None: nothing is written."""

    @property
    def limits_folder(self) -> Path:
        """Folder in which runs note what their guests have."""
        return self.limits_dir or self.run_dir / "limits"

    @property
    def is_system(self) -> bool:
        """Whether libvirt's system daemon runs the guests; only it has networks and bridges of the host."""
        return urlsplit(self.uri).path == "/system"
