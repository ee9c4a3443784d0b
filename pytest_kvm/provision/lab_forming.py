"""How a lab is formed, and what the function that forms it must not leave behind."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pytest_kvm.errors import SpecError
from pytest_kvm.hypervisor.protocol import DomainState

if TYPE_CHECKING:
    from pytest_kvm.machine.machine import Machine


@dataclass(frozen=True, kw_only=True)
class Forming:
    """How a lab comes to be."""

    name: str
    """The fixture's name."""
    function: Callable[[], None]
    """Forms the lab, by verbs of its guests; whatever it raises is the fixture's error."""
    digest: str
    """Digest of all that the function depends on, besides the guests."""
    digest_again: Callable[[], str]
    """Returns the digest of what is there now."""
    on_step: Callable[[str], None]
    """Called before each step with a phrase for people."""

    def form(self) -> None:
        """Form the lab.

        Raises:
            Exception: Whatever the function raises.
        """
        self.on_step("forming")
        self.function()


def check_left(name: str, machine: Machine) -> None:
    """Check that a guest of a lab that was formed is as the guest of a later run would be.

    Args:
        name: The name of the lab's fixture.
        machine: The guest's machine.

    Raises:
        SpecError: The guest is off or paused, or has something at work that ends with the run.
    """
    if not machine.domain.alive():
        raise SpecError(
            f"the lab template {name} has left {machine.name} off ({machine.domain.end_reason()})",
            resolution="switch it on again: a lab's guests run",
        )
    if machine.domain.state() is not DomainState.RUNNING:
        raise SpecError(
            f"the lab template {name} has left {machine.name} paused",
            resolution="resume() it: a lab's guests run",
        )
    if machine.at_work:
        raise SpecError(
            f"the lab template {name} has left something in {machine.name} that a later run would not have: "
            + ", ".join(map(repr, machine.at_work)),
            resolution="stop() the process, close() the port; what is to stay can be a unit (systemd-run)",
        )
