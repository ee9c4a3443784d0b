from __future__ import annotations

from functools import partial

import libvirt
import pytest

from pytest_kvm.hypervisor.lifecycle import Lifecycle

STOPPED = libvirt.VIR_DOMAIN_EVENT_STOPPED


@pytest.fixture
def life():
    return Lifecycle("web", autopsy=lambda: "it was killed by signal 9 (Killed)")


@pytest.mark.parametrize(
    ("detail", "reason"),
    [
        (libvirt.VIR_DOMAIN_EVENT_STOPPED_SHUTDOWN, "guest shutdown"),
        (libvirt.VIR_DOMAIN_EVENT_STOPPED_DESTROYED, "destroyed"),
        (libvirt.VIR_DOMAIN_EVENT_STOPPED_SAVED, "saved to a file"),
        (libvirt.VIR_DOMAIN_EVENT_STOPPED_FAILED, "QEMU died: it was killed by signal 9 (Killed)"),
        (libvirt.VIR_DOMAIN_EVENT_STOPPED_CRASHED, "QEMU died: it was killed by signal 9 (Killed)"),
        (77, "stopped (libvirt's detail 77)"),
    ],
)
def test_an_event_says_why_it_ended(life, detail, reason):
    assert life.alive
    life.event(STOPPED, detail)
    assert (life.alive, life.reason, life.settled) == (False, reason, True)


def test_other_events_are_not_the_end(life):
    life.event(libvirt.VIR_DOMAIN_EVENT_SUSPENDED, 0)
    assert life.alive
    assert not life.wait(0)


def test_a_panic_is_the_end_before_libvirt_stops_the_domain(life):
    life.event(libvirt.VIR_DOMAIN_EVENT_CRASHED, libvirt.VIR_DOMAIN_EVENT_CRASHED_PANICKED)
    assert (life.reason, life.settled) == ("crashed: the guest's kernel panicked", False)
    life.event(STOPPED, libvirt.VIR_DOMAIN_EVENT_STOPPED_CRASHED)
    assert (life.reason, life.settled) == ("crashed: the guest's kernel panicked", True)


def test_a_full_disk_is_the_end_though_libvirt_only_pauses_the_domain(life, tmp_path):
    failed = partial(life.disk_failed, device="virtio-disk0", reason="enospc")
    assert failed(str(tmp_path / "root.qcow2"))
    assert not failed(str(tmp_path / "other.qcow2")), "the first one counts"
    assert life.reason.startswith("QEMU has stopped it at its virtio-disk0: the host's disk is full, ")
    assert life.reason.endswith(f" MiB are free for {tmp_path}/root.qcow2")
    assert not life.settled


@pytest.mark.parametrize(
    ("file", "reason", "said"),
    [
        ("/run/root.qcow2", "", "the host could not read or write /run/root.qcow2"),
        ("", "Stale file handle", "the host could not read or write its file: Stale file handle"),
        ("", "enospc", "the host's disk is full"),
    ],
)
def test_a_disk_that_fails_is_the_end(life, file, reason, said):
    assert life.disk_failed(file, device="virtio-disk0", reason=reason)
    assert life.reason == f"QEMU has stopped it at its virtio-disk0: {said}"


def test_how_much_is_free_may_be_unknown(life, monkeypatch):
    def refuse(_path):
        raise PermissionError

    monkeypatch.setattr("pytest_kvm.hypervisor.lifecycle.disk_free_mib", refuse)
    assert life.disk_failed("/run/root.qcow2", device="virtio-disk0", reason="enospc")
    assert life.reason.endswith("the host's disk is full")


def test_an_expected_end_is_no_death(life):
    life.expect("destroyed")
    life.event(STOPPED, libvirt.VIR_DOMAIN_EVENT_STOPPED_FAILED)
    assert life.reason == "destroyed"


def test_only_the_first_reason_counts_and_each_callback_hears_it_once(life):
    heard = []
    life.on_end(heard.append)
    life.note_end("first")
    life.note_end("second")
    life.on_end(heard.append)
    assert heard == ["first", "first"]


def test_a_callback_that_fails_does_not_keep_the_others_from_hearing(life, caplog):
    heard = []
    life.on_end(lambda _reason: 1 / 0)
    life.on_end(heard.append)
    life.note_end("over")
    assert heard == ["over"]
    assert "a callback for the end of web failed" in caplog.text
