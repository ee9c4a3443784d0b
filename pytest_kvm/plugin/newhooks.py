"""Hooks that pytest-kvm offers to other plugins and to ``conftest.py``.

How to write hooks: https://docs.pytest.org/en/stable/how-to/writing_hook_functions.html
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pytest

    from pytest_kvm.handles.guest import Guest
    from pytest_kvm.spec.guest import GuestSpec


@dataclass(kw_only=True)
class GuestDeclaration:
    """A guest before it is started: what ``pytest_kvm_modify_spec`` may change."""

    name: str
    """The name of its fixture, or the one given to ``kvm_guests``."""
    spec: GuestSpec
    """What the guest is made of; a hook assigns another spec to change the guest."""


def pytest_kvm_modify_spec(config: pytest.Config, declaration: GuestDeclaration) -> None:
    """Change what a guest is made of.

    Called for each guest before it is started, with the fields of the kvm
    marker in its spec. It is also called during collection for the guests whose
    specs are checked there, so it should do the same each time and start
    nothing. A hook that is called later gets the spec that earlier hooks left.

    Args:
        config: The session's configuration.
        declaration: The guest. Its ``spec`` is frozen: assign another one,
            ``declaration.spec = dataclasses.replace(declaration.spec, memory="2GiB")``.
    """


def pytest_kvm_guest_ready(config: pytest.Config, guest: Guest) -> None:
    """Do something with a guest that is ready, before any fixture or test uses it.

    Called once for each guest, in the thread that is the first to wait for it:
    pytest's own, unless a test uses guests in threads. Changes that the hook
    makes to the guest stay for all tests. If a test switches the guest off, the
    guest is started anew for the next test; if the hook had changed it, the hook
    is called again.

    An exception raised here is raised wherever a test or fixture waits for the guest.

    Args:
        config: The session's configuration.
        guest: The guest; every verb can be used.
    """


def pytest_kvm_guest_failed(config: pytest.Config, guest: Guest, error: BaseException) -> None:
    """Do something about a guest that did not become ready.

    Called once for each guest, in the thread that is the first to wait for it,
    before the error is raised there. It is not called for a guest that nothing waits for.
    An exception raised here is raised there instead, with the error as its cause.

    Args:
        config: The session's configuration.
        guest: The guest; its verbs raise ``error``.
        error: The cause: a :class:`~pytest_kvm.errors.BootFailed`, or an error of the
            host, the hypervisor or the image.
    """
