"""Hooks that pytest-kvm offers to other plugins and to ``conftest.py``.

https://docs.pytest.org/en/stable/how-to/writing_hook_functions.html says how they are written.
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
    """What it is made of; a hook puts another spec here to change it."""


def pytest_kvm_modify_spec(config: pytest.Config, declaration: GuestDeclaration) -> None:
    """Change what a guest is made of.

    Called for each guest before it is started, with the fields of the kvm
    marker in its spec. It is also called during collection for the guests whose
    specs are checked there, so it should do the same each time and start
    nothing. Hooks that are called later see what earlier ones made of the spec.

    Args:
        config: The session's configuration.
        declaration: Its ``spec`` is frozen: assign another,
            ``declaration.spec = dataclasses.replace(declaration.spec, memory="2GiB")``.
    """


def pytest_kvm_guest_ready(config: pytest.Config, guest: Guest) -> None:
    """Do something with a guest that is ready, before any fixture or test uses it.

    Called once for each guest, in the thread that is the first to wait for it:
    pytest's own, unless a test uses guests in threads. What is done to the
    guest here stays for all tests. A guest that a test switched off is
    started anew for the next; if a hook had changed it, the hook is called again.

    An exception raised here is raised wherever the guest is waited for.

    Args:
        config: The session's configuration.
        guest: The guest; every verb can be used.
    """


def pytest_kvm_guest_failed(config: pytest.Config, guest: Guest, error: BaseException) -> None:
    """Learn that a guest did not become ready.

    Called once for each guest, in the thread that is the first to wait for it,
    before the error is raised there. A guest that nobody waits for is not told of.

    Args:
        config: The session's configuration.
        guest: The guest; its verbs raise ``error``.
        error: Why; a :class:`~pytest_kvm.errors.BootFailed`, or an error of the
            host, the hypervisor or the image.
    """
