"""What the disturbed runs consist of."""

from __future__ import annotations

SOAK_SECONDS = 3600
"""How long the long form of a test may take."""

HEAD = """
import os, signal
import psutil
import pytest
import pytest_kvm as kvm

# A shell that put us into the background has us ignore Ctrl-C, and nohup(1) SIGHUP.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)

def small(*nics):
    return kvm.GuestSpec(memory="512MiB", vcpus=1, nics=nics)

@kvm.guest
def machine():
    return small()
"""

BUSY = f"""{HEAD}
@kvm.network(scope="module")
def lan():
    return kvm.NetworkSpec()

@kvm.guest(scope="module")
def kept():
    return small()

@kvm.guest
def fresh(lan):
    return small(kvm.Nic(lan))

@pytest.mark.parametrize("turn", range(100))
def test_both(kept, fresh, lan, turn):
    assert kept.run("ls /root").stdout == "", "it was reset"
    kept.run("touch /root/changed")
    point = kept.savepoint()
    kept.run("rm /root/changed")
    point.restore()
    kept.run("ls /root/changed")
    with lan.capture(), lan.isolate(fresh):
        fresh.run("true")
"""
"""Boots, freezes, clones, resets and removes guests, with a switch."""
BUSY_TEST = "test_it.py::test_both"
"""Its test, which has numbers as parameter."""

JOINED = f"""{HEAD}
@kvm.network
def lan():
    return kvm.NetworkSpec()

@kvm.guest
def joined(lan):
    return small(kvm.Nic(lan))
"""
"""Has a guest on a segment, besides ``machine``."""

FOREVER = f"""{JOINED}
@pytest.fixture
def slow(joined):
    yield
    print("TEARDOWN BEGINS", flush=True)
    joined.run("sleep 3600", timeout=3600)

def run_forever(joined):
    print("GUEST IS UP", flush=True)
    joined.run("sleep 3600", timeout=3600)

def test_once(joined):
    joined.run("true")

def test_forever(joined):
    run_forever(joined)

def test_slow(joined, slow):
    run_forever(joined)
"""
