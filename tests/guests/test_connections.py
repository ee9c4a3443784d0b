"""The other connections: the user's own session daemon, and a system daemon; two guests on a segment each."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys

import pytest

from pytest_kvm.host.run_folder import RUNS
from pytest_kvm.plugin.session import settings_stashed
from scripts.check import EVENTS
from scripts.folders import own_folder
from tests import timings
from tests.system_daemon import NAMESPACES, beside_a_daemon, has_kvm

SUITE = """
import os
import signal

import pytest_kvm as kvm


@kvm.network
def lan():
    return kvm.NetworkSpec()


@kvm.guest
def machine(lan):
    return kvm.GuestSpec(memory="512MiB", vcpus=1, nics=[kvm.Nic(lan)])


@kvm.guest
def neighbour(lan):
    return kvm.GuestSpec(memory="512MiB", vcpus=1, nics=[kvm.Nic(lan)])


def test(machine, neighbour):
    machine.run(["ping", "-c", "1", "-W", "20", "neighbour"])
    assert machine.run(["echo", "hello"]).stdout == "hello\\n"
    assert machine.agent.ping() is None
    assert machine.screenshot().startswith(b"\\x89PNG")
    if "KILLED" in os.environ:
        os.kill(os.getpid(), signal.SIGKILL)
"""
NOBODY = 65534
KILLED = """
"$@"
python=$1
domains() {{ "$python" -c 'import libvirt; print(*libvirt.open("qemu:///system").listAllDomains())'; }}
there=$(domains)
test -z "$there"
KILLED=1 "$@" && exit 1
for _ in $(seq 300); do
    there="$(domains) $(ls {runs})"
    test "$there" != " guard" || exit 0
    sleep 0.1
done
echo "still there: $there" >&2; exit 1
"""
"""A run, and another that is killed while its guests are up: soon after, they and its folder are gone."""


@pytest.fixture
def work():
    with own_folder("kvm-") as folder:
        yield folder


def command(work, uri, cache_dir):
    (work / "suite").mkdir()
    (work / "suite" / "test_connection.py").write_text(SUITE)
    (work / "suite" / "pytest.ini").write_text("[pytest]\n")
    return [
        *(sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-v", str(work / "suite")),
        *(f"--kvm-uri={uri}", f"--kvm-cache-dir={cache_dir}", f"--kvm-run-dir={work / 'r'}"),
    ]


def finish(argv, work, environment):
    events = work / "events.jsonl"  # the run's own file is not to be reached from in there
    finished = subprocess.run(
        argv,
        env={**environment, EVENTS: str(events)},
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    assert finished.returncode == 0, finished.stdout + finished.stderr
    timings.add(events)
    assert "1 passed" in finished.stdout
    assert [path.name for path in (work / "r" / RUNS).iterdir()] == ["guard"]


def readable(cache_dir, work):
    """Copy the image to where the user may read it."""
    for part in ("blobs", "names"):
        shutil.copytree(cache_dir / "images" / part, work / "cache" / "images" / part)
    for path in (work / "cache", *(work / "cache").rglob("*")):
        os.chown(path, work.stat().st_uid, -1)
    return work / "cache"


def test_session(pytestconfig, work):
    """A daemon that libvirt starts for the user, and that would linger."""
    rights, prefix = ["--user", "--map-current-user"], []
    for path in (work / "run", work / "home"):
        path.mkdir(mode=0o700)
    if os.geteuid() == 0:
        rights = []
        prefix = ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups", "--inh-caps=-all"]
        for path in (work, work / "run", work / "home"):
            os.chown(path, NOBODY, NOBODY)
    environment = {
        "PATH": os.environ["PATH"],
        "HOME": str(work / "home"),
        "XDG_RUNTIME_DIR": str(work / "run"),
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    cache_dir = readable(settings_stashed(pytestconfig).cache_dir, work)
    shell = ["bash", "-c", '"$@"; exit $?', "bash"]
    argv = [*NAMESPACES, *rights, *shell, *prefix, *command(work, "qemu:///session", cache_dir)]
    finish(argv, work, environment)


def test_system(pytestconfig, work):
    """A real libvirtd, in namespaces that end with the test."""
    cache_dir = settings_stashed(pytestconfig).cache_dir
    script = "set -e" + KILLED.format(runs=shlex.quote(str(work / "r" / RUNS)))
    shell = ["bash", "-c", script, "bash", *command(work, "qemu:///system", cache_dir)]
    finish(beside_a_daemon(shell, kvm=has_kvm(pytestconfig)), work, dict(os.environ))
