"""Tells at once when the teardown of a fixture fails."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest

OnFailure = Callable[[BaseException], None]


def watch_finalizers(definition: pytest.FixtureDef[Any], *, on_failure: OnFailure) -> None:
    """Have somebody told at once if one of the finalizers fails that a fixture has now.

    pytest itself tells when all fixtures of the test are torn down, and the
    guests of the one that has failed are gone. It has no public way to be told
    before; without this attribute nobody is.
    """
    finalizers: list[Callable[[], object]] = getattr(definition, "_finalizers", [])
    finalizers[:] = [partial(_finish, each, on_failure) for each in finalizers]


def _finish(finalizer: Callable[[], object], on_failure: OnFailure) -> None:
    __tracebackhide__ = True
    try:
        finalizer()
    except (KeyboardInterrupt, SystemExit, pytest.exit.Exception):
        raise
    except BaseException as failure:  # pytest.fail() raises no Exception
        on_failure(failure)
        raise
