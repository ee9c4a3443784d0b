"""Questions to a part of a machine that may never answer."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from pytest_kvm.at_once import in_thread
from pytest_kvm.errors import CommandTimeout, KvmError

T = TypeVar("T")


class NoAnswer(Exception):  # noqa: N818 - it says what there is instead of an answer
    """Half a sentence about what was asked: "is not there"."""


class Silence(NoAnswer):
    """What was asked has not answered in time."""

    def __init__(self) -> None:
        super().__init__("does not answer")


def ask(question: Callable[[], T], *, within: float) -> T:
    """Return what a question gives; if it takes too long, its thread is left alone with it.

    Raises:
        Silence: It takes too long.
        NoAnswer: It fails.
    """
    try:
        return in_thread(question).result(timeout=within)
    except (TimeoutError, CommandTimeout):
        raise Silence from None
    except KvmError as failure:
        raise NoAnswer(f"fails: {failure.brief}") from None
    except (LookupError, TypeError, ValueError) as failure:  # a guest agent may answer anything
        raise NoAnswer(f"fails: {failure!r:.200}") from None
