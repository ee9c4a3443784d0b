"""Chooses what runs guests' code: KVM if it really runs guests on this machine, else QEMU's translator TCG.

It is not enough that ``/dev/kvm`` opens. Some kernel modules behind it answer
every query (``KVM_GET_API_VERSION``, even ``KVM_CREATE_VM``) and still cannot
run the machine that QEMU sets up. Others (for example ``kvm_pvm``) run kernels
that were made for them, and emulate every instruction of all other kernels:
firmware alone takes minutes, and a stock kernel never prints anything. So a
test guest runs a counting loop, and measures with the processor's own clock
(RDTSC) how long the loop takes. The whole test takes some 50 ms.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import shutil
import subprocess
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from pytest_kvm.errors import KvmUnavailable
from pytest_kvm.host.command import with_parent_death_signal
from pytest_kvm.host.install_hints import install_hint
from pytest_kvm.settings import Accel


@dataclass(frozen=True, kw_only=True)
class Accelerator:
    """The accelerator of a run, and why it was chosen."""

    kind: Literal["kvm", "tcg"]
    reason: str
    """Why it was chosen; a clause for the report header."""


def choose_accelerator(accel: Accel, *, cache_dir: Path) -> Accelerator:
    """Choose the accelerator that runs the guests' code.

    Args:
        accel: What the user asked for; ``auto`` takes KVM where it truly works.
        cache_dir: Folder that keeps the result of the KVM test.

    Raises:
        KvmUnavailable: KVM was asked for and does not work.
    """
    if accel == "tcg":
        return Accelerator(kind="tcg", reason="asked for")
    probe = kvm_usable(cache_dir)
    if probe.usable:
        return Accelerator(kind="kvm", reason=probe.reason)
    if accel == "kvm":
        raise KvmUnavailable(
            f"KVM was asked for and does not work here: {probe.reason}",
            resolution=probe.remedy or "use a machine with hardware virtualization, or --kvm-accel=auto",
        )
    return Accelerator(kind="tcg", reason=f"no KVM: {probe.reason}")


_DEVICE = Path("/dev/kvm")
_KVM_GET_API_VERSION = 0xAE00
_STABLE_API = 12
"""The only version there has been since Linux 2.6.22 (Documentation/virt/kvm/api.rst)."""

_ROM_SIZE = 64 * 1024
_RESET_VECTOR = 0xFFF0
_EXIT_PORT = 0xF4
_RAN_FAST = 0x2A
"""Byte that the test guest writes to the exit port when its loop was fast."""
_RAN_SLOWLY = _RAN_FAST + 1
"""The same when its loop was slow: each instruction is emulated."""
_CODE = bytes.fromhex(
    "fa"  #                     cli
    "2e 66 0f 01 16 4d 00"  #   lgdt cs:[table]
    "0f 20 c0  0c 01  0f 22 c0"  # cr0 |= 1: protected mode
    "66 ea 18 00 0f 00 08 00"  # jmp 0x08:flat
    "66 b8 10 00"  #            flat: mov ax, 0x10
    "8e d8  8e c0  8e e0  8e e8  8e d0"  # all data segments, or older processors cannot run it
    f"b3 {_RAN_FAST:02x}"  #        mov bl, 0x2a
    "bf 14 00 00 00"  #         mov edi, 20: tries, as another program may take the processor during one
    "0f 31  89 c6"  #           try: rdtsc; mov esi, eax
    "b9 e8 03 00 00"  #         mov ecx, 1000
    "49  75 fd"  #              again: dec ecx; jnz again
    "0f 31  29 f0"  #           rdtsc; sub eax, esi
    "3d a0 86 01 00  72 04"  #  cmp eax, 100000; jb done: a cycle or two per round, not thousands
    "4f  75 e6"  #              dec edi; jnz try
    "43"  #                     inc ebx
    f"88 d8  e6 {_EXIT_PORT:02x}  f4"  # done: mov al, bl; out 0xf4, al; hlt
    "17 00 53 00 0f 00"  #      table: 24 bytes at 0xf0053
    "00 00 00 00 00 00 00 00"
    "ff ff 00 00 00 9b cf 00"  # 0x08: code, 32 bits, flat
    "ff ff 00 00 00 93 cf 00"  # 0x10: data, 32 bits, flat
)
"""The test guest's program. It begins at 0xf0000, where a guest sees the last 64 KiB of its ROM."""
_TO_CODE = bytes.fromhex("ea 00 00 00 f0")
"""Instruction at the reset vector: jmp 0xf000:0x0000, where the program begins."""
_LONGEST_RUN = 5.0


@dataclass(frozen=True, kw_only=True)
class KvmProbe:
    """Result of the test of KVM."""

    usable: bool
    reason: str
    """What was seen, as a clause ("a test guest ran")."""
    remedy: str = ""
    """How to make KVM usable; empty if KVM is usable, or if nothing on this machine can make it so."""


def kvm_usable(cache_dir: Path) -> KvmProbe:
    """Find out whether KVM runs guests here.

    Args:
        cache_dir: Folder that keeps the result until the machine is booted
            again, or QEMU, the device or the kernel modules change.
    """
    barrier = _no_access()
    if barrier is not None:
        return barrier
    qemu = shutil.which("qemu-system-x86_64")
    if qemu is None:
        return KvmProbe(usable=False, reason="QEMU is not installed", remedy=install_hint("qemu-system"))
    key = _cache_key(qemu)
    kept = cache_dir / "kvm-probe.json"
    known = _read_result(kept, key)
    if known is None:
        known = _run_test_guest(qemu)
        _write_result(kept, key, known)
    return known


def _no_access() -> KvmProbe | None:
    """Return why this process cannot use the device, None if it can.

    This result is never kept: a change of the user's groups or of the device's mode changes it.
    """
    try:
        device = os.open(_DEVICE, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return KvmProbe(
            usable=False,
            reason="/dev/kvm does not exist",
            remedy="load kvm_intel or kvm_amd (modprobe); in a container: --device /dev/kvm; "
            "in a virtual machine: switch nested virtualization on at its host",
        )
    except PermissionError:
        return KvmProbe(
            usable=False,
            reason="/dev/kvm may not be opened by this user",
            remedy="usermod --append --groups kvm $USER and log in again; on a CI runner a udev rule: "
            'KERNEL=="kvm", GROUP="kvm", MODE="0666", OPTIONS+="static_node=kvm"',
        )
    except OSError as problem:
        return KvmProbe(
            usable=False,
            reason=f"/dev/kvm does not open: {problem.strerror}",
            remedy="switch virtualization on in the firmware, or nested virtualization at the host"
            if problem.errno == errno.ENODEV
            else "",
        )
    try:
        version = fcntl.ioctl(device, _KVM_GET_API_VERSION)
    except OSError as problem:
        return KvmProbe(usable=False, reason=f"/dev/kvm does not answer: {problem.strerror}")
    finally:
        os.close(device)
    if version != _STABLE_API:
        return KvmProbe(usable=False, reason=f"/dev/kvm speaks version {version}, not {_STABLE_API}")
    return None


def _run_test_guest(qemu: str) -> KvmProbe:
    """Run a test guest whose program starts at the reset vector; return whether it ended, and fast enough."""
    rom = bytearray(b"\xf4" * _ROM_SIZE)
    rom[: len(_CODE)] = _CODE
    rom[_RESET_VECTOR : _RESET_VECTOR + len(_TO_CODE)] = _TO_CODE
    try:
        ran = _run_qemu(qemu, bytes(rom))
    except subprocess.TimeoutExpired:
        return KvmProbe(usable=False, reason=f"a test guest hung for {_LONGEST_RUN:.0f} s")
    if ran.returncode == _exit_of(_RAN_FAST):
        return KvmProbe(usable=True, reason="a test guest ran")
    if ran.returncode == _exit_of(_RAN_SLOWLY):
        return KvmProbe(usable=False, reason="KVM here emulates each instruction of a test guest")
    said = ran.stderr.decode(errors="replace").strip().splitlines() or [f"exit status {ran.returncode}"]
    return KvmProbe(usable=False, reason=f"a test guest did not run: {said[0]}")


def _run_qemu(qemu: str, rom: bytes) -> subprocess.CompletedProcess[bytes]:
    """Run QEMU with the ROM in memory and without core dumps, so that a kill leaves no file behind."""
    with os.fdopen(os.memfd_create("kvm-probe"), "wb") as file:
        file.write(rom)
        file.flush()
        argv = [qemu, "-accel", "kvm", "-cpu", "host", "-machine", "q35", "-m", "16"]
        argv += ["-nodefaults", "-no-user-config", "-display", "none"]
        argv += ["-bios", f"/proc/self/fd/{file.fileno()}"]
        argv += ["-device", f"isa-debug-exit,iobase={_EXIT_PORT},iosize=1"]
        no_core = ["sh", "-c", 'ulimit -c 0; exec "$@"', "sh"]
        return subprocess.run(
            with_parent_death_signal([*no_core, *argv]),
            capture_output=True,
            timeout=_LONGEST_RUN,
            check=False,
            pass_fds=[file.fileno()],
        )


def _exit_of(said: int) -> int:
    """Return QEMU's exit code after the guest wrote a byte to its isa-debug-exit device."""
    return said << 1 | 1


def _cache_key(qemu: str) -> str:
    """Return a text that changes with everything the test's result depends on."""
    binary = Path(qemu).stat()
    device = _DEVICE.stat()
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    modules = ",".join(sorted(path.name for path in Path("/sys/module").glob("kvm*")))
    program = hashlib.sha256(_CODE).hexdigest()[:8]  # another program may give another result
    return (
        f"{boot} {qemu} {binary.st_ino} {binary.st_mtime_ns} {device.st_rdev} {device.st_ctime_ns} {modules}"
        f" {program}"
    )


def _read_result(kept: Path, key: str) -> KvmProbe | None:
    with suppress(OSError, ValueError, KeyError, TypeError):
        note = json.loads(kept.read_text())
        if note["key"] == key:
            return KvmProbe(**note["probe"])
    return None


def _write_result(kept: Path, key: str, probe: KvmProbe) -> None:
    # If the cache cannot be written, the next run has to test again, which takes some 50 ms.
    with suppress(OSError):
        kept.parent.mkdir(parents=True, exist_ok=True)
        fresh = kept.with_name(f"{kept.name}.{os.getpid()}")
        fresh.write_text(json.dumps({"key": key, "probe": asdict(probe)}))
        fresh.replace(kept)
