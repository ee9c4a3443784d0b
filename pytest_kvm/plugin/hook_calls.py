"""Calls the hooks that other plugins implement; ``newhooks`` describes each hook."""

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
"""What a guest is started for: a test, or the module, class, package or session of its fixture."""


def modify_spec(node: Node, spec: GuestSpec, *, name: str) -> GuestSpec:
    """Return a guest's spec as ``pytest_kvm_modify_spec`` leaves it.

    Args:
        node: What the guest is started for. Hooks in a ``conftest.py`` of
            another folder are not called.
        spec: The spec.
        name: The guest's name.

    Raises:
        SpecError: A hook assigned something that is no spec.
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

    Hooks are called for one guest at a time, even if several threads wait for
    guests, so that hooks need no locks.

    Args:
        coordinator: Is told that the hook is at work, so that the hook's changes to
            a guest are not undone with those of the test that was the first to wait.
    """

    def __init__(self, coordinator: ResetCoordinator) -> None:
        self._coordinator = coordinator
        self._lock = threading.RLock()
        """Reentrant, because a hook may use its guest and other guests."""
        self._told: WeakKeyDictionary[Guest, BaseException | None] = WeakKeyDictionary()
        """Guests whose hook was called, and what ``pytest_kvm_guest_ready`` raised for them."""
        self._changed: WeakValueDictionary[Owner, Guest] = WeakValueDictionary()
        """Guests that ``pytest_kvm_guest_ready`` changed, by the owner of these changes."""

    def tell(self, guest: Guest, error: BaseException | None, *, node: Node) -> None:
        """Call the hook for a guest whose boot is over, unless it was called before.

        Args:
            guest: The guest.
            error: The boot's error; None: the guest is ready.
            node: What the guest is started for.

        Raises:
            BaseException: What the hook raised. ``pytest_kvm_guest_ready``'s exception is raised again
                by each later call for the guest.
        """
        with self._lock:
            if guest not in self._told:
                self._told[guest] = None
                self._call(guest, error, node=node)
            if (raised := self._told[guest]) is not None:
                raise raised

    def finish(self, owner: Owner) -> None:
        """End an owner whose changes a hook made: they are undone, and the next wait calls the hook again."""
        with self._lock:
            guest = self._changed.pop(owner, None)
            if guest is not None:
                self._told.pop(guest, None)
                try:
                    owner.end()
                finally:
                    self._coordinator.cut_off(owner)

    def _call(self, guest: Guest, error: BaseException | None, *, node: Node) -> None:
        if error is not None:
            try:
                node.ihook.pytest_kvm_guest_failed(config=node.config, guest=guest, error=error)
            except BaseException as raised:
                raise raised from error  # a report shows both
            return
        owner = Owner("pytest_kvm_guest_ready")
        try:
            with self._coordinator.at_work(owner):
                node.ihook.pytest_kvm_guest_ready(config=node.config, guest=guest)
        except BaseException as raised:  # noqa: BLE001 - tell() raises it in each call, as a boot's error
            self._told[guest] = raised
            owner.on_end.close()
        if self._coordinator.has_changes_of(owner):
            self._changed[owner] = guest
