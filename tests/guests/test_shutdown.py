from __future__ import annotations

import pytest

from pytest_kvm.errors import GuestGone
from tests.guest_specs import SMALL


@pytest.mark.parametrize("button", [False, True], ids=["asked by ssh", "power button"])
def test_a_guest_shuts_down_in_good_order(boot, button):
    guest = boot(SMALL)
    offset = guest.console.offset()
    guest.shutdown(button=button)
    assert guest.state == "ended"
    assert "Power down" in guest.console.text(since=offset) or "Power-Off" in guest.console.text(since=offset)
    with pytest.raises(GuestGone):
        guest.run("true")


def test_a_guest_that_ends_by_itself_ends_a_wait(boot):
    guest = boot(SMALL)
    guest.start("sleep 2; systemctl poweroff")
    with pytest.raises(GuestGone, match="waiting for /never to be there"):
        guest.wait_for_file("/never", timeout=600)
