"""Folders of machines with their records, and processes that look like their QEMUs."""

from __future__ import annotations

import subprocess
import sys
from contextlib import ExitStack, contextmanager
from dataclasses import replace

from pytest_kvm.host import run_records
from pytest_kvm.host.run_records import MachineRecord

RECORD = MachineRecord(
    guest="web",
    state="starting",
    since=1.0,
    domain="5ca1ab1e-web",
    image="debian-13",
    memory_mib=512,
    vcpus=1,
    user="root",
    port=2222,
    key_file="/run/key",
    host_key="ssh-ed25519 AAAA",
    known_hosts="/run/known_hosts",
)
RUNNING = replace(RECORD, state="running")


@contextmanager
def machine(run, place="web", *, record=RUNNING, is_on=True):
    """A machine's folder with its record, and a process that looks like its QEMU."""
    folder = run / place
    folder.mkdir()
    run_records.write_machine(folder, record)
    with ExitStack() as stack:
        process = None
        if is_on:
            argv = ["qemu-system-x86_64", "-c", "print(flush=True); input()", f"{folder}/console.log"]
            process = stack.enter_context(
                subprocess.Popen(
                    argv, executable=sys.executable, stdin=subprocess.PIPE, stdout=subprocess.PIPE
                )
            )
            stack.callback(process.kill)
            process.stdout.readline()  # Popen returns before the kernel shows the command line
        yield process
