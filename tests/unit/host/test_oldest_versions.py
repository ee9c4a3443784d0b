from __future__ import annotations

import pytest

from pytest_kvm.errors import MissingDependency
from pytest_kvm.host.oldest_versions import check_version, version_in, why_too_old


@pytest.mark.parametrize(
    ("said", "version"),
    [
        ("QEMU emulator version 7.2.22 (Debian 1:7.2+dfsg-7+deb12u18+b3)\nCopyright (c) 2003-2022", "7.2.22"),
        ("qemu-img version 9.2.50 (v9.1.0-2-g0ff5ab6f57)", "9.2.50"),
        ("QEMU emulator version 10.0", "10.0"),
        ("warning: libfoo 1.2.3\nqemu-img version 8.2.2", "8.2.2"),
        ("QEMU 8.2.2", ""),
    ],
)
def test_a_version_is_read(said, version):
    assert version_in(said) == version


@pytest.mark.parametrize(
    ("version", "why"),
    [
        ("7.2.0", ""),
        ("10.0.0", ""),
        ("7.2", ""),
        ("6.2", "version 6.2; 7.2.0 is the oldest that will do"),
        ("7.1.99", "version 7.1.99; 7.2.0 is the oldest that will do"),
        ("", "an unknown version; 7.2.0 is the oldest that will do"),
    ],
)
def test_a_version_is_judged(version, why):
    assert why_too_old("QEMU", version) == why


def test_the_error_says_where_the_program_is_and_what_to_do():
    with pytest.raises(MissingDependency) as caught:
        check_version("QEMU", "5.2.0", where="/opt/qemu")
    assert str(caught.value).splitlines()[0] == (
        "QEMU (/opt/qemu) is version 5.2.0; 7.2.0 is the oldest that will do"
    )
    assert "Debian 12" in caught.value.resolution
