"""Reach what listens in a guest."""

from __future__ import annotations

import urllib.request

import pytest_kvm as kvm


def test_a_client_on_the_host(machine: kvm.Guest) -> None:
    with machine.forward(80) as web, urllib.request.urlopen(f"http://{web.host}:{web.port}/") as answer:
        assert b"nginx" in answer.read()
