"""Several things at the same time."""

from __future__ import annotations

import signal
import threading
from concurrent.futures import Future

import pytest

from pytest_kvm.at_once import outcomes_at_once, wait_for
from pytest_kvm.handles.guest import Guest


def test_outcomes_are_in_the_order_of_the_actions():
    both = threading.Barrier(2, timeout=60)

    def fails():
        both.wait()
        raise ValueError("no")

    def works():
        both.wait()
        return "done"

    failure, done = outcomes_at_once([fails, works])
    assert isinstance(failure, ValueError)
    assert done == "done"


@pytest.mark.parametrize(
    "wait", [lambda: wait_for([Future()]), lambda: Guest("web", Future()).wait_ready()], ids=["work", "boot"]
)
def test_a_ctrl_c_that_does_not_end_the_wait_itself_is_noticed(wait):
    """A signal that another thread gets is as one that comes just before the wait: it wakes nobody up."""

    def interrupt():
        signal.pthread_kill(threading.get_ident(), signal.SIGINT)

    thread = threading.Timer(0.2, interrupt)
    thread.start()
    with pytest.raises(KeyboardInterrupt):
        wait()
    thread.join()
