"""A service from the distribution, tested where it will run."""

from __future__ import annotations

import pytest

import pytest_kvm as kvm


@kvm.guest(scope="module")
def web():
    return kvm.GuestSpec(
        packages=["nginx-light"],
        units=["nginx.service"],
        cloud_init=kvm.CloudInit(files=[kvm.File("/var/www/html/hello", "hello\n")]),
    )


def test_serves_a_file(web: kvm.Guest):
    web.wait_for_port(80)
    with web.forward(80) as forward:
        import urllib.request

        with urllib.request.urlopen(f"http://{forward.host}:{forward.port}/hello") as answer:
            assert answer.read() == b"hello\n"


def test_a_failing_unit_is_named(web: kvm.Guest):
    web.write_text("/etc/nginx/conf.d/broken.conf", "no such directive;\n")
    try:
        web.run(["systemctl", "restart", "nginx"], check=False)
        with pytest.raises(kvm.UnitFailed, match=r"nginx\.service"):
            web.wait_for_unit("nginx.service")
    finally:
        web.run(["rm", "/etc/nginx/conf.d/broken.conf"])
        web.run(["systemctl", "restart", "nginx"])
