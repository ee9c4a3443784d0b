"""Reports of a kernel are recognised by its own words, and nothing else is."""

from __future__ import annotations

import random

import pytest

from pytest_kvm.machine.kernel_reports import MOST_REPORTS, find_reports

# Real lines, of kernels from 5.10 to 6.17.
WORDS = {
    "panic": [
        "Kernel panic - not syncing: sysrq triggered crash",
        "Kernel panic - not syncing: VFS: Unable to mount root fs on unknown-block(0,0)",
    ],
    "oops": [
        "BUG: kernel NULL pointer dereference, address: 0000000000000000",
        "BUG: unable to handle page fault for address: ffffc90000000000",
        "BUG: scheduling while atomic: swapper/0/1/0x00000002",
        "BUG: sleeping function called from invalid context at kernel/locking/mutex.c:283",
        "BUG: Bad page state in process bash  pfn:1a2b3",
        "kernel BUG at fs/ext4/inode.c:2721!",
        "general protection fault, probably for non-canonical address 0xdead000000000108: 0000 [#1] SMP",
        "divide error: 0000 [#1] PREEMPT SMP NOPTI",
        "Unable to handle kernel NULL pointer dereference at virtual address 0000000000000008",
        "Internal error: Oops: 96000004 [#1] SMP",
        "BUG xfs_inode/a@(x) (Not tainted): Poison overwritten",
        "BUG kmalloc-64 (Not tainted): Poison overwritten",
        "BUG kmalloc-rnd-05-32 (Tainted: G    B      OE     ): Left Redzone overwritten",
        "int3: 0000 [#1] PREEMPT SMP NOPTI",
        "stack segment: 0000 [#1] SMP",
        "invalid opcode: 0000 [#1] PREEMPT SMP NOPTI",
    ],
    "lockdep report": [
        "WARNING: possible circular locking dependency detected",
        "WARNING: possible recursive locking detected",
        "WARNING: possible irq lock inversion dependency detected",
        "WARNING: inconsistent lock state",
        "WARNING: bad unlock balance detected!",
        "WARNING: suspicious RCU usage",
        "WARNING: HARDIRQ-safe -> HARDIRQ-unsafe lock order detected",
        "[ BUG: Invalid wait context ]",
    ],
    "sanitizer report": [
        "BUG: KASAN: slab-out-of-bounds in kmalloc_oob_right+0xa8/0xbc [test_kasan]",
        "BUG: KCSAN: data-race in __d_move / __d_lookup",
        "BUG: KFENCE: use-after-free read in test_use_after_free_read+0xb3/0x143",
        "UBSAN: array-index-out-of-bounds in drivers/net/foo.c:12:3",
    ],
    "soft lockup": [
        "watchdog: BUG: soft lockup - CPU#0 stuck for 26s! [modprobe:123]",
        "BUG: workqueue lockup - pool cpus=0 node=0 flags=0x0 nice=0 stuck for 45s!",
        "NMI watchdog: Watchdog detected hard LOCKUP on cpu 0",
        "watchdog: Watchdog detected hard LOCKUP on cpu 1",
    ],
    "hung task": [
        "INFO: task jbd2/vda1-8:211 blocked for more than 120 seconds.",
        "INFO: task kworker/u4:1:40 blocked for more than 241 seconds.",
        "INFO: task fio:77 blocked in I/O wait for more than 120 seconds.",
    ],
    "RCU stall": [
        "rcu: INFO: rcu_preempt self-detected stall on CPU",
        "rcu: INFO: rcu_sched detected stalls on CPUs/tasks:",
        "rcu: INFO: rcu_preempt detected expedited stalls on CPUs/tasks: { 0-... } 26 jiffies",
        "INFO: rcu_sched self-detected stall on CPU",
    ],
    "OOM kill": [
        "Out of memory (oom_kill_allocating_task): Killed process 321 (stress) total-vm:1kB",
        "Out of memory: Killed process 321 (stress) total-vm:1kB, anon-rss:1kB, file-rss:0kB",
        "Memory cgroup out of memory: Killed process 477 (python3) total-vm:219232kB",
    ],
    "warning": [
        "WARNING: CPU: 0 PID: 41 at fs/btrfs/inode.c:9 btrfs_foo+0x12/0x30 [btrfs]",
        "WARNING: fs/btrfs/inode.c:9 at btrfs_foo+0x12/0x30, CPU#1: mount/41",
        "WARNING: [list[i] > 3] fs/btrfs/inode.c:9 at btrfs_foo+0x12/0x30, CPU#1: mount/41",
    ],
}
HARMLESS = [
    "systemd[1]: foo.service: WARNING: BUG: I am no kernel",
    "traps: python3[12] general protection fault ip:7f12 sp:7ffd error:0 in libc.so.6",
    "traps: a.out[5] trap divide error ip:401000 sp:7ffd error:0 in a.out",
    'audit: type=1400 audit(1.2:3): avc:  denied  { read } comm="BUG: x"',
    "Spectre V2 : WARNING: Unprivileged eBPF is enabled with eIBRS on",
    "rcu: Hierarchical RCU implementation.",
    "debug: nothing",
    "virtio_blk virtio1: Internal error: no such request",
    "myhost myprogram: BUG: quoted by journalctl -k -o short-monotonic",
    "Call Trace:",
]


def line(text, stamp=12.345678, caller=""):
    return f"[{stamp:12.6f}]{caller} {text}\n".encode()


def kinds(text):
    return [each.report.kind for each in find_reports(text)]


@pytest.mark.parametrize(("kind", "words"), [(kind, words) for kind, all_ in WORDS.items() for words in all_])
def test_each_kind_is_recognised_by_the_kernels_words(kind, words):
    (found,) = find_reports(line("before", 12.1) + line(words) + line("Call Trace:"))
    assert (found.report.kind, found.report.line, found.report.stamp) == (kind, words, "12.345678")
    (found,) = find_reports(line(words, caller="[    T1]"))
    assert (found.report.kind, found.report.line) == (kind, words)


@pytest.mark.parametrize("words", HARMLESS)
def test_what_is_no_report(words):
    assert not kinds(line(words))


def test_what_a_program_prints_is_no_report():
    assert not kinds(b"BUG: I print this myself\nOut of memory: Kill me\n")


def test_a_panic_counts_without_a_stamp():
    (found,) = find_reports(b"some\nKernel panic - not syncing: why\nCPU: 0\n")
    assert (found.report.kind, found.report.stamp, found.report.text.splitlines()[1]) == (
        "panic",
        "",
        "CPU: 0",
    )


def test_a_panic_without_a_stamp_is_none_where_the_kernel_stamps():
    bare = b"Kernel panic - not syncing: says a process\n"
    assert not kinds(line("eth0: link up") + bare)
    assert not find_reports(bare, stamps=True)


def test_a_stamp_behind_a_stamp_is_not_the_kernels():
    assert not kinds(b"[   20.000000] [   12.345678] BUG: quoted\n")
    assert not kinds(b"[   20.000000][    T7] [   12.345678] BUG: quoted\n")


def test_an_oops_is_one_with_its_trace():
    text = (
        line("BUG: kernel NULL pointer dereference, address: 0")
        + line("#PF: supervisor read access", 12.345679)
        + b"Started foo.service.\n"
        + line("Oops: 0000 [#1] PREEMPT SMP", 12.345680)
        + line("RIP: 0010:foo+0x1", 12.345681)
        + line("---[ end trace 0000000000000000 ]---", 12.345682)
        + line("eth0: link up", 12.345683)
    )
    (found,) = find_reports(text)
    assert found.report.kind == "oops"
    assert found.report.text.splitlines()[0].endswith("address: 0")
    assert "Started foo" not in found.report.text
    assert found.report.text.endswith("---[ end trace 0000000000000000 ]---")
    assert found.is_complete


def test_two_errors_are_two_however_close():
    text = line("Memory cgroup out of memory: Killed process 1 (a)") + line("BUG: Bad page state", 12.4)
    assert kinds(text) == ["OOM kill", "oops"]
    assert "Bad page" not in find_reports(text)[0].report.text


def test_a_trace_without_an_end_may_go_on():
    assert not find_reports(line("BUG: x") + line("Call Trace:"))[0].is_complete
    assert find_reports(line("BUG: x") + line("much later", 30.0))[0].is_complete


def test_what_a_guest_sends_is_bounded_and_clean():
    (found,) = find_reports(line("BUG: \x1b]0;title\x07\x1b[31mred\x00") + line("\xff" * 20_000))
    assert found.report.line == "BUG: red"
    assert len(found.report.text) < 13_000
    (long,) = find_reports(line("BUG: x") + b"".join(line(f"line {number}") for number in range(1000)))
    assert len(long.report.text.splitlines()) == 60
    many = find_reports(b"".join(line(f"BUG: {number}", 20.0 + number) for number in range(1000)))
    assert len(many) == MOST_REPORTS


def test_many_of_one_kind_hide_no_other():
    warnings = b"".join(line("WARNING: CPU: 0 PID: 1 at a.c:1", 20.0 + number) for number in range(100))
    found = kinds(warnings + line("Kernel panic - not syncing: why", 200.0))
    assert found == ["warning"] * MOST_REPORTS + ["panic"]


def test_noise_is_no_report():
    noise = random.Random(1).randbytes(300_000)
    assert not find_reports(noise)


def test_an_oom_kill_is_told_with_what_led_to_it():
    text = (
        line("eth0: link up", 12.0)
        + line("python3 invoked oom-killer: gfp_mask=0xcc0(GFP_KERNEL), order=0, oom_score_adj=0", 12.3)
        + b"systemd prints this\n"
        + b"".join(line(f"task {number}", 12.31) for number in range(100))
        + line("oom-kill:constraint=CONSTRAINT_MEMCG,oom_memcg=/test.slice,task=python3", 12.32)
        + line("Memory cgroup out of memory: Killed process 477 (python3) total-vm:219232kB", 12.33)
        + line("eth0: link down", 12.34)
    )
    (found,) = find_reports(text)
    assert found.report.line == "Memory cgroup out of memory: Killed process 477 (python3) total-vm:219232kB"
    first, *between, last = found.report.text.splitlines()
    assert "python3 invoked oom-killer" in first
    assert "oom_memcg=/test.slice" in between[-1]
    assert len(between) < 61
    assert found.report.line in last
    assert "systemd" not in found.report.text
    assert "eth0" not in found.report.text


def test_what_is_said_before_a_warning_is_a_part_of_it():
    text = (
        line("------------[ cut here ]------------", 12.3)
        + line("refcount_t: underflow; use-after-free.", 12.3)
        + line("WARNING: CPU: 0 PID: 41 at lib/refcount.c:28 refcount_warn_saturate+0xba/0x110", 12.3)
        + line("---[ end trace 0000000000000000 ]---", 12.3)
        + line("BUG: Bad page state", 12.4)
    )
    warning, bug = find_reports(text)
    assert "refcount_t: underflow" in warning.report.text
    assert warning.report.line.startswith("WARNING: CPU: 0")
    assert bug.report.text.splitlines() == ["[   12.400000] BUG: Bad page state"]


GPF = "Oops: general protection fault, probably for non-canonical address 0xdead: 0000 [#1] SMP"


def test_an_oops_right_after_a_report_that_has_ended_is_its_own():
    before = line("BUG: sleeping function called from invalid context at a.c:1", 12.1)
    end = line("---[ end trace 0000000000000000 ]---", 12.2)
    assert kinds(before + end + line(GPF, 12.3)) == ["oops", "oops"]
    assert kinds(before + line(GPF, 12.3)) == ["oops"]
    assert kinds(before + line(GPF, 12.3) + line(GPF.replace("#1", "#2"), 12.4)) == ["oops", "oops"]


@pytest.mark.parametrize("end", [b"", line("---[ end trace 0000000000000000 ]---", 12.2)])
def test_so_is_one_that_is_read_later(end):
    (former,) = find_reports(line("BUG: sleeping function called from invalid context at a.c:1", 12.1) + end)
    assert len(find_reports(line(GPF, 12.3), former=former.report)) == bool(end)


def test_a_head_that_is_long_ago_is_anothers():
    text = line("------------[ cut here ]------------", 1.0) + line("BUG: Bad page state", 12.4)
    (found,) = find_reports(text)
    assert "cut here" not in found.report.text


def test_time_stamps_of_several_processors_can_be_in_disorder():
    text = (
        line("BUG: kernel NULL pointer dereference, address: 0", 12.345678)
        + line("eth0: link up at [1.000000]", 12.345675)
        + line("Oops: 0000 [#1] PREEMPT SMP", 12.345676)
        + line("RIP: 0010:foo+0x1", 12.345680)
    )
    (found,) = find_reports(text)
    assert "RIP: 0010:foo+0x1" in found.report.text
