"""What is measured of this machine, its files and its processes."""

from __future__ import annotations

import os
import subprocess
import sys

from pytest_kvm.host.resources import disk_free_mib, disk_taken_below, disk_taken_mib, memory_saved_mib

MIB = 1024 * 1024
MAPS = f"""
import mmap, sys
with open(sys.argv[1], "r+b") as file:
    guest = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
touched = bytearray(32 * {MIB})
print("ready", flush=True)
sys.stdin.read()
"""


def test_free_space_of_a_folder_that_is_not_made_yet(tmp_path):
    assert disk_free_mib(tmp_path / "a/b/c") > 0


def test_files_with_holes_take_less_than_their_size(tmp_path):
    file = tmp_path / "ram"
    with file.open("wb") as opened:
        opened.write(b"x" * 3 * MIB)
        opened.truncate(1024 * MIB)
    assert disk_taken_mib([file, file, tmp_path / "gone"]) == 6
    (tmp_path / "link").symlink_to(file)
    assert disk_taken_below(tmp_path) // MIB == 3
    assert disk_taken_below(tmp_path / "gone") == 0


def test_a_snapshot_has_what_a_process_has_touched_and_what_it_maps(tmp_path):
    file = tmp_path / "ram"
    with file.open("wb") as opened:
        opened.write(b"x" * 8 * MIB)
        opened.truncate(16 * 1024 * MIB)
    argv = [sys.executable, "-c", MAPS, str(file)]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "ready\n"
        assert 40 <= memory_saved_mib(process.pid) < 100
        process.communicate()
    assert memory_saved_mib(process.pid) == 0


def test_a_process_may_map_no_file():
    assert memory_saved_mib(os.getpid()) > 0
