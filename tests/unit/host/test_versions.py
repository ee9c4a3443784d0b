"""A stamp tells one build of a program from another, on every machine the same way."""

from __future__ import annotations

import os

from pytest_kvm.host.versions import firmware_stamps, processor, stamp

CPUINFO = """processor\t: 0
vendor_id\t: GenuineIntel
cpu family\t: 6
model\t\t: 85
model name\t: Xeon
stepping\t: 7
microcode\t: {microcode}
cpu MHz\t\t: {mhz}
flags\t\t: fpu vme
bogomips\t: {mhz}

processor\t: 1
vendor_id\t: GenuineIntel
"""


def test_a_copy_has_the_stamp_of_its_original(tmp_path):
    """Not inode and not ctime: a cache may be carried to a machine with the same packages."""
    program = tmp_path / "qemu"
    program.write_text("x")
    os.utime(program, ns=(5, 5))
    before = stamp(program)
    program.unlink()
    program.write_text("y")
    os.utime(program, ns=(9, 5))
    assert stamp(program) == before == f"{program} 1 5"


def test_another_size_or_time_is_another_stamp(tmp_path):
    program = tmp_path / "qemu"
    stamps = {stamp(program)}
    for text, time in (("x", 5), ("xx", 5), ("xx", 6)):
        program.write_text(text)
        os.utime(program, ns=(time, time))
        stamps.add(stamp(program))
    assert len(stamps) == 4


def test_firmware_is_every_file_of_the_folders_there_are(tmp_path):
    (tmp_path / "bios.bin").write_text("x")
    (tmp_path / "vars.fd").write_text("x")
    found = firmware_stamps((tmp_path / "missing", tmp_path))
    assert [each.split()[0] for each in found] == [str(tmp_path / "bios.bin"), str(tmp_path / "vars.fd")]


def test_a_processor_is_known_by_model_and_microcode_not_by_its_clock(tmp_path):
    cpuinfo = tmp_path / "cpuinfo"

    def seen(**values):
        cpuinfo.write_text(CPUINFO.format(**values))
        return processor(cpuinfo)

    first = seen(microcode="0x1", mhz="2000.1")
    assert first == seen(microcode="0x1", mhz="3000.7")
    assert first != seen(microcode="0x2", mhz="2000.1")
    assert "model name=Xeon" in first


def test_a_machine_without_cpuinfo_is_unknown(tmp_path):
    assert processor(tmp_path / "missing") == "unknown"
