"""Something that has to hold all the time."""

from __future__ import annotations

import pytest

import pytest_kvm as kvm


def test_a_server_answers_while_its_neighbour_restarts(alice: kvm.Guest, bob: kvm.Guest) -> None:
    def ssh_is_up() -> bool:
        return alice.run(["systemctl", "is-active", "ssh.service"], check=False).ok

    with kvm.polling(ssh_is_up, every=0.2):
        bob.run(["systemctl", "restart", "systemd-networkd.service"])


def test_a_breach_is_told_with_its_moment(alice: kvm.Guest) -> None:
    def nobody_is_told() -> None:
        assert not alice.read_text("/root/news"), "alice has news"

    alice.write_text("/root/news", "")
    with pytest.raises(AssertionError, match="alice has news"), kvm.polling(nobody_is_told, every=0.1):
        alice.write_text("/root/news", "the address has moved")
