"""One guest for all tests of this folder."""

from __future__ import annotations

import pytest_kvm as kvm


@kvm.guest(scope="session")
def machine():
    return kvm.GuestSpec(memory="512MiB", hostname="quickstart")
