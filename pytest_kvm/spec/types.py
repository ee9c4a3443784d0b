"""Checks a value against the type annotation of a spec's field."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, cast, get_args, get_origin, get_type_hints

_WORDS = {
    NoneType: "None",
    Path: "a path",
    bool: "True or False",
    bytes: "bytes",
    float: "a number",
    int: "a whole number",
    str: "a string",
    Callable: "a function",
    Mapping: "a mapping",
    Sequence: "a list",
}

_hints: dict[type[Any], dict[str, Any]] = {}
"""Evaluated annotations by class, kept because evaluating takes longer than all checks."""


def misfit(owner: type[Any], name: str, *, value: object) -> str | None:
    """Return what is wrong with a field's value ("'60' is not a number or None"); None if it fits."""
    if owner not in _hints:
        _hints[owner] = get_type_hints(owner)
    hint = _hints[owner][name]
    return None if _fits(value, hint) else f"{value!r} is not {' or '.join(dict.fromkeys(_words(hint)))}"


def _fits(value: object, hint: Any) -> bool:  # noqa: ANN401 - a form of typing
    origin, arguments = get_origin(hint) or hint, get_args(hint)
    if origin in (Union, UnionType):
        fits = any(_fits(value, each) for each in arguments)
    elif origin is Literal:
        fits = value in arguments
    elif origin is Callable:
        fits = callable(value)
    elif origin is Sequence:
        fits = _is_list(value) and all(_fits(each, arguments[0]) for each in cast("Sequence[object]", value))
    elif isinstance(value, bool):  # bool is a subclass of int
        fits = origin in (bool, Any)
    else:
        fits = origin is Any or isinstance(value, (int, float) if origin is float else origin)
    return fits


def _is_list(value: object) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, (str, bytes, bytearray))


def _words(hint: Any) -> Iterator[str]:  # noqa: ANN401 - a form of typing
    origin = get_origin(hint) or hint
    if origin in (Union, UnionType):
        for each in get_args(hint):
            yield from _words(each)
    elif origin is Literal:
        yield from map(repr, get_args(hint))
    else:
        yield _WORDS.get(origin) or f"of class {origin.__name__}"
