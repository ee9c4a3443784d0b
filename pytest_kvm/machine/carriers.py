"""Whether a machine's network cards on segments have a carrier."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pytest_kvm.hypervisor.protocol import Domain


class Carriers:
    """The carriers of one machine's cards; each card has one until it is taken away.

    https://www.qemu.org/docs/master/interop/qemu-qmp-ref.html, ``set_link``
    """

    def __init__(self) -> None:
        self._is_on: dict[str, bool] = {}
        self._are_in_doubt = False
        """Whether a savepoint may hold other carriers than those of now."""

    def set(self, domain: Domain, card: str, *, on: bool) -> None:
        """Give a card its carrier, or take it away; the guest sees it.

        Args:
            domain: The machine's domain.
            card: QEMU's id of the card.
            on: Whether it has a carrier.

        Raises:
            DomainFailed: QEMU has ended, or has no such card.
        """
        if self._is_on.get(card, True) != on:
            domain.qmp("set_link", {"name": card, "up": on})
            self._are_in_doubt = True
        self._is_on[card] = on

    def set_again(self, domain: Domain) -> None:
        """Set all carriers after a savepoint was loaded, which has brought back those of its time.

        Raises:
            DomainFailed: QEMU has ended.
        """
        if self._are_in_doubt:
            for card, on in self._is_on.items():
                domain.qmp("set_link", {"name": card, "up": on})
