"""Many workers, and many resets."""

from __future__ import annotations

import pytest

from tests.faults.suites import HEAD, SOAK_SECONDS

RESETS, SOAK_RESETS = 20, 200

MANY_TESTS = f"""{HEAD}
@pytest.mark.parametrize("turn", range(16))
def test_it(machine, turn):
    machine.run(["touch", f"/root/{{turn}}"])
    assert machine.run("ls /root").stdout == f"{{turn}}\\n"
"""

MANY_RESETS = f"""{HEAD}
import threading

@kvm.network(scope="module")
def lan():
    return kvm.NetworkSpec()

@kvm.guest(scope="module")
def kept(lan):
    return small(kvm.Nic(lan))

@pytest.fixture(scope="module")
def seen():
    return []

@pytest.mark.parametrize("turn", range({{resets}} + 1))
def test_it(kept, turn, seen):
    assert kept.run("ls /root /dev/shm").stdout.split() == ["/dev/shm:", "/root:"]
    kept.run("touch /root/mark /dev/shm/mark")
    process = psutil.Process()
    seen.append([
        len(os.listdir("/proc/self/fd")),
        threading.active_count(),
        len(process.children(recursive=True)),
        len(os.listdir(kept.machine.folder.parent)),
    ])

def test_nothing_grew(seen):
    third = len(seen) // 3
    early, late = (list(map(max, zip(*part))) for part in (seen[third : 2 * third], seen[2 * third :]))
    print("\\ndescriptors, threads, processes, files", early, late, flush=True)
    # One more for each reset would be several times as much.
    assert all(last <= first + 4 for first, last in zip(early, late)), seen
"""


def test_more_workers_than_processors(suites):
    suite = suites.start(MANY_TESTS, "-n8")
    assert suite.wait() == pytest.ExitCode.OK, suite.output[-5000:]
    assert "16 passed" in suite.output
    suite.wait_gone()


@pytest.mark.timeout(SOAK_SECONDS)
def test_many_resets_in_a_row(suites, soak, figures):
    resets = SOAK_RESETS if soak else RESETS
    suite = suites.start(MANY_RESETS.replace("{resets}", str(resets)), "--kvm-pool=1")
    assert suite.wait(400 + 10 * resets) == pytest.ExitCode.OK, suite.output[-5000:]
    (grown,) = (line for line in suite.output.splitlines() if line.startswith("descriptors"))
    (told,) = (line for line in suite.output.splitlines() if f", {resets} resets" in line)
    figures(f"{told}; {grown}")
    suite.wait_gone()
