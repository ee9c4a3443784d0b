"""Reach what listens in a guest."""

from __future__ import annotations

import urllib.request

import pytest_kvm as kvm


def test_a_client_on_the_host(web: kvm.Guest) -> None:
    with web.forward(80) as port, urllib.request.urlopen(f"http://{port.host}:{port.port}/hello") as answer:
        assert answer.read() == b"hello\n"
