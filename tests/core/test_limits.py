"""The room that guests have on this machine."""

from __future__ import annotations

import pytest

import pytest_kvm as kvm
from pytest_kvm.errors import NoCapacity
from pytest_kvm.host.register import Register
from pytest_kvm.plugin.session import settings_stashed


def test_a_guest_has_room_for_its_qemu(guest, pytestconfig):
    register = Register(settings_stashed(pytestconfig).limits_folder)
    with register.turn():
        grants = [grant for each in register.others() for grant in each["grants"]]
    (amount,) = (amount for _, amount, *_, pids in grants if guest.machine.domain.pid in pids)
    assert amount == [512, 1, 1]


def test_what_there_is_never_room_for_is_refused_at_once(kvm_guests):
    huge = kvm.GuestSpec(memory="100TiB", vcpus=1)
    with pytest.raises(NoCapacity, match="there is never room for 102400 GiB of memory"):
        kvm_guests.boot(huge)
    assert kvm_guests.started == []
