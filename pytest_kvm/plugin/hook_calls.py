"""Calls the hooks that other plugins implement; ``newhooks`` says what each means."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any, TypeAlias
from weakref import WeakKeyDictionary, WeakValueDictionary

from pytest_kvm.errors import SpecError
from pytest_kvm.plugin.newhooks import GuestDeclaration
from pytest_kvm.provision.undo_log import Owner

if TYPE_CHECKING:
    import pytest

    from pytest_kvm.handles.guest import Guest
    from pytest_kvm.provision.reset_coordinator import ResetCoordinator
    from pytest_kvm.spec.guest import GuestSpec

Node: TypeAlias = "pytest.Item | pytest.Collector"
"""Whom a guest is for: a test, or the module, class, package or session of its fixture."""


def modify_spec(node: Node, spec: GuestSpec, *, name: str) -> GuestSpec:
    """Return a guest's spec as ``pytest_kvm_modify_spec`` leaves it.

    Args:
        node: Whom the guest is for: what the ``conftest.py`` of other folders
            say does not count.
        spec: The spec.
        name: The guest's name.

    Raises:
        SpecError: A hook left something that is no spec.
    """
    from pytest_kvm.spec.guest import GuestSpec  # noqa: PLC0415 - only projects with guests pay for it

    declaration = GuestDeclaration(name=name, spec=spec)
    node.ihook.pytest_kvm_modify_spec(config=node.config, declaration=declaration)
    left: Any = declaration.spec
    if not isinstance(left, GuestSpec):
        raise SpecError(
            f"{name}: a pytest_kvm_modify_spec hook left {type(left).__name__}, not a GuestSpec",
            resolution="assign dataclasses.replace(declaration.spec, …) to declaration.spec",
        )
    return left


class BootOutcomes:
    """Calls ``pytest_kvm_guest_ready`` or ``pytest_kvm_guest_failed`` once for each guest.

    One guest at a time, whichever threads wait for guests: hooks need no locks.

    Args:
        coordinator: Is told that the hook is at work, so that what it does to a
            guest is not undone with the test that happened to wait first.
    """

    def __init__(self, coordinator: ResetCoordinator) -> None:
        self._coordinator = coordinator
        self._lock = threading.RLock()
        """Reentrant: the hook of one guest may use that guest, and others."""
        self._told: WeakKeyDictionary[Guest, BaseException | None] = WeakKeyDictionary()
        """Guests whose hook was called, and what ``pytest_kvm_guest_ready`` raised for them."""
        self._changed: WeakValueDictionary[Owner, Guest] = WeakValueDictionary()
        """Guests that a hook changed, by the owner of these changes."""

    def tell(self, guest: Guest, error: BaseException | None, *, node: Node) -> None:
        """Call the hook of a guest whose boot is over, if it was not called yet.

        Args:
            guest: The guest.
            error: Why it failed; None: it is ready.
            node: Whom the guest is for.

        Raises:
            BaseException: What the hook raised; for a guest that is ready, each time.
        """
        with self._lock:
            if guest not in self._told:
                self._told[guest] = None
                self._call(guest, error, node=node)
            if (raised := self._told[guest]) is not None:
                raise raised

    def finish(self, owner: Owner) -> None:
        """Have the hook called again for a guest that it changed: its changes are about to be undone."""
        with self._lock:
            guest = self._changed.pop(owner, None)
            if guest is not None:
                owner.ended = True
                self._told.pop(guest, None)

    def _call(self, guest: Guest, error: BaseException | None, *, node: Node) -> None:
        if error is not None:
            node.ihook.pytest_kvm_guest_failed(config=node.config, guest=guest, error=error)
            return
        owner = Owner("pytest_kvm_guest_ready")
        try:
            with self._coordinator.at_work(owner):
                node.ihook.pytest_kvm_guest_ready(config=node.config, guest=guest)
        except BaseException as raised:  # noqa: BLE001 - as a boot's error is, for whoever waits
            self._told[guest] = raised
        if self._coordinator.has_changes_of(owner):
            self._changed[owner] = guest
