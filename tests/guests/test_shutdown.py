from __future__ import annotations

import pytest

import pytest_kvm as kvm
from pytest_kvm.errors import GuestGone


@pytest.mark.parametrize("button", [False, True], ids=["asked by ssh", "power button"])
def test_a_guest_shuts_down_in_good_order(boot, button):
    guest = boot(kvm.GuestSpec(memory="768MiB", vcpus=2))
    offset = guest.console.offset()
    guest.shutdown(button=button)
    assert guest.state == "ended"
    assert "Power down" in guest.console.text(since=offset) or "Power-Off" in guest.console.text(since=offset)
    with pytest.raises(GuestGone):
        guest.run("true")


def test_a_guest_that_ends_by_itself_ends_a_wait(boot):
    guest = boot(kvm.GuestSpec(memory="768MiB", vcpus=2))
    guest.start("sleep 2; systemctl poweroff")
    with pytest.raises(GuestGone, match="waiting for /never to be there"):
        guest.wait_for_file("/never", timeout=600)
