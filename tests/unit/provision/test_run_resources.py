"""Values that are opened when they are first wanted, and closed once."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest

from pytest_kvm.errors import GuestGone
from pytest_kvm.provision.run_resources import Lazy


class Opener:
    """Notes what happens to the values it opens."""

    def __init__(self):
        self.done = []
        self.failure = None

    @contextmanager
    def __call__(self):
        if self.failure:
            raise self.failure
        self.done.append("open")
        yield "the value"
        self.done.append("close")


@pytest.fixture
def opener():
    return Opener()


def test_all_threads_get_one_value(opener):
    lazy, together = Lazy(opener), threading.Barrier(8)
    assert opener.done == []

    def get():
        together.wait(10)
        return lazy.get()

    with ThreadPoolExecutor(8) as threads:
        assert [each.result() for each in [threads.submit(get) for _ in range(8)]] == ["the value"] * 8
    lazy.close()
    assert opener.done == ["open", "close"]


def test_what_could_not_be_opened_is_tried_again(opener):
    lazy = Lazy(opener)
    opener.failure = OSError("no space left")
    with pytest.raises(OSError, match="no space left"):
        lazy.get()
    opener.failure = None
    assert lazy.get() == "the value"


@pytest.mark.parametrize("was_open", [True, False])
def test_nothing_is_opened_after_the_end(opener, was_open):
    """A guest whose image was still being built would open a folder and a connection that nobody closes."""
    lazy = Lazy(opener)
    if was_open:
        lazy.get()
    lazy.close()
    before = list(opener.done)
    with pytest.raises(GuestGone, match="the run has ended"):
        lazy.get()
    assert opener.done == before
    lazy.close()
