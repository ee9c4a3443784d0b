from __future__ import annotations

import libvirt
import pytest

from pytest_kvm.hypervisor.lifecycle import Lifecycle, disk_failure

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


def test_a_full_disk_is_named(tmp_path):
    why = disk_failure(f"{tmp_path}/root.qcow2", device="virtio-disk0", reason="enospc")
    assert why.startswith("QEMU has stopped it at its virtio-disk0: the host's disk is full, ")
    assert why.endswith(f" MiB are free for {tmp_path}/root.qcow2")


@pytest.mark.parametrize(
    ("file", "reason", "said"),
    [
        ("/run/root.qcow2", "", "the host could not read or write /run/root.qcow2"),
        ("", "Stale file handle", "the host could not read or write its file: Stale file handle"),
        ("", "enospc", "the host's disk is full"),
    ],
)
def test_a_disk_that_fails_is_named_as_far_as_it_is_known(file, reason, said):
    why = disk_failure(file, device="virtio-disk0", reason=reason)
    assert why == f"QEMU has stopped it at its virtio-disk0: {said}"


def test_how_much_is_free_may_be_unknown(monkeypatch):
    def refuse(_path):
        raise PermissionError

    monkeypatch.setattr("pytest_kvm.hypervisor.lifecycle.disk_free_mib", refuse)
    why = disk_failure("/run/root.qcow2", device="virtio-disk0", reason="enospc")
    assert why.endswith("the host's disk is full")


def test_an_expected_end_is_no_death(life):
    life.expect("destroyed")
    life.event(STOPPED, libvirt.VIR_DOMAIN_EVENT_STOPPED_FAILED)
    assert life.reason == "destroyed"


def test_only_the_first_reason_counts_and_each_callback_hears_it_once(life):
    heard = []
    life.on_end(heard.append)
    assert life.note_end("first")
    assert not life.note_end("second")
    life.on_end(heard.append)
    assert heard == ["first", "first"]


def test_a_callback_that_fails_does_not_keep_the_others_from_hearing(life, caplog):
    heard = []
    life.on_end(lambda _reason: 1 / 0)
    life.on_end(heard.append)
    life.note_end("over")
    assert heard == ["over"]
    assert "a callback for the end of web failed" in caplog.text


def test_it_is_known_whether_a_domain_was_given_up(life):
    assert life.give_up("QEMU does not answer")
    assert (life.was_given_up, life.reason) == (True, "QEMU does not answer")


def test_one_that_has_ended_by_itself_was_not_given_up(life):
    life.note_end("guest shutdown")
    assert not life.give_up("QEMU does not answer")
    assert (life.was_given_up, life.reason) == (False, "guest shutdown")
