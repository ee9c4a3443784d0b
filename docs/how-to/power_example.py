"""Switch a guest off and on."""

from __future__ import annotations

import itertools

import pytest

import pytest_kvm as kvm


def test_a_paused_guest_does_nothing(machine: kvm.Guest) -> None:
    with machine.start("while :; do echo tick; sleep 0.1; done") as clock:
        assert next(clock.lines()) == "tick"
        machine.pause()
        with pytest.raises(kvm.CommandTimeout):
            list(clock.lines(timeout=2))
        ticks = clock.so_far().stdout.count("tick")
        machine.resume()
        assert list(itertools.islice(clock.lines(), ticks + 1)) == ["tick"] * (ticks + 1)


def test_what_is_on_the_disk_outlives_a_reboot(machine: kvm.Guest) -> None:
    machine.write_text("/root/kept", "still here\n")
    machine.write_text("/run/lost", "memory only\n")
    before = machine.read_text("/proc/sys/kernel/random/boot_id")
    machine.reboot()
    assert machine.read_text("/proc/sys/kernel/random/boot_id") != before
    assert machine.read_text("/root/kept") == "still here\n"
    machine.wait_for_file("/run/lost", absent=True)


def test_what_is_on_the_disk_outlives_a_time_without_power(machine: kvm.Guest) -> None:
    machine.write_text("/root/kept", "still here\n")
    machine.shutdown()
    assert machine.state == "ended"
    with pytest.raises(kvm.GuestGone):
        machine.run(["true"])
    machine.power_on()
    assert machine.read_text("/root/kept") == "still here\n"
