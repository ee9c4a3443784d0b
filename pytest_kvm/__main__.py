"""Makes ``python -m pytest_kvm`` the same as ``pytest-kvm``."""

from __future__ import annotations

from pytest_kvm.cli.main import main

if __name__ == "__main__":
    raise SystemExit(main())
