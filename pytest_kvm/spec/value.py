"""What all spec classes have in common: frozen, keyword-only, a short repr, fields checked by their types."""

from __future__ import annotations

import difflib
import functools
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import MISSING, Field, dataclass, field, fields
from pathlib import Path
from types import NoneType, UnionType
from typing import (
    Any,
    Literal,
    TypeVar,
    Union,
    cast,
    dataclass_transform,
    get_args,
    get_origin,
    get_type_hints,
)

from pytest_kvm.errors import SpecError

T = TypeVar("T")
_LONGEST = 86400
"""Seconds that can be asked for: a day."""


@dataclass_transform(frozen_default=True, kw_only_default=True, field_specifiers=(field,))
def spec_value(cls: type[T]) -> type[T]:
    """Make a spec class: a frozen keyword-only dataclass whose mistakes are SpecErrors.

    A plain dataclass answers an unknown field with a ``TypeError`` that does
    not say which fields there are, and it accepts values of any type. Both
    mistakes are frequent.
    """
    made: Any = dataclass(frozen=True, kw_only=True, repr=False)(cls)
    generated = made.__init__
    known = {each.name: each for each in fields(made)}

    @functools.wraps(generated)
    def init_checked(self: T, *args: object, **given: object) -> None:
        _check_fields(cls.__name__, known, given, positional=len(args))
        try:
            generated(self, *args, **given)
        except SpecError:
            raise
        except Exception:
            # The checks failed, most likely on a value of a wrong type; otherwise it is a bug of the plugin.
            names = [each.name for each in known.values() if not each.kw_only]
            _check_types(made, {**dict(zip(names, args, strict=False)), **given})
            raise
        _check_types(made, {name: getattr(self, name) for name in known})

    made.__init__ = init_checked
    made.__repr__ = _short_repr
    return cast("type[T]", made)


def _check_fields(
    owner: str, known: dict[str, Field[Any]], given: dict[str, Any], *, positional: int
) -> None:
    for name in given:
        if name not in known:
            raise SpecError(f"{owner} has no field {name!r}", resolution=suggest(name, known, what="fields"))
    takes = [each.name for each in known.values() if not each.kw_only]
    if positional > len(takes):
        raise SpecError(
            f"{owner} takes {len(takes)} positional argument(s), {positional} given",
            resolution="name the fields: " + ", ".join(known),
        )
    required = {
        each.name for each in known.values() if each.default is MISSING and each.default_factory is MISSING
    }
    missing = required - set(given) - set(takes[:positional])
    if missing:
        raise SpecError(f"{owner} needs {', '.join(sorted(missing))}")


def _check_types(owner: type[Any], values: dict[str, Any]) -> None:
    for name, value in values.items():
        problem = misfit(owner, name, value=value)
        if problem is not None:
            raise SpecError(f"{owner.__name__}.{name}: {problem}")


def suggest(word: str, known: Iterable[str], *, what: str) -> str:
    """Return advice on a word that is not among the known ones."""
    names = sorted(known)
    near = difflib.get_close_matches(word, names, n=1)
    listing = f"{what}: {', '.join(names)}" if names else f"there are no {what}"
    return f"did you mean {near[0]!r}? {listing}" if near else listing


def _short_repr(self: object) -> str:
    """Return a repr of only the fields that differ from their defaults; test ids and plans show it."""
    shown: list[str] = []
    for each in fields(cast("Any", self)):
        value: object = getattr(self, each.name)
        default = each.default_factory() if each.default_factory is not MISSING else each.default
        if value == default:
            continue
        text = repr(list(cast("tuple[object, ...]", value)) if isinstance(value, tuple) else value)
        shown.append(text if not each.kw_only else f"{each.name}={text}")
    return f"{type(self).__name__}({', '.join(shown)})"


def check_choice(value: object, choices: Any, *, field: str) -> None:  # noqa: ANN401 - a Literal form
    """Raise SpecError unless ``value`` is one of a ``Literal``'s values."""
    allowed = get_args(choices)
    if value not in allowed:
        raise SpecError(
            f"{field}: {value!r} is not one of {', '.join(map(repr, allowed))}",
            resolution=suggest(str(value), map(str, allowed), what="choices"),
        )


def is_number(value: object) -> bool:
    """Say whether a value is a number; a truth value is none."""
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def check_seconds(value: float, *, field: str) -> float:
    """Return a number of seconds.

    Raises:
        SpecError: It is no number from 0 to a day.
    """
    if not (is_number(value) and 0 <= value <= _LONGEST):
        raise SpecError(f"{field}: {value!r} is not a number of seconds from 0 to {_LONGEST}")
    return value


def check_sequence(values: Iterable[object], *, field: str, one: type[Any] = str) -> tuple[Any, ...]:
    """Return ``values`` as a tuple after checking each item's class.

    A string instead of a list is refused: ``packages="nginx"`` would be five packages.
    """
    if isinstance(values, (str, bytes)):
        raise SpecError(
            f"{field}: {values!r} is one item, a list is wanted", resolution=f"write [{values!r}]"
        )
    items = tuple(values)
    for index, item in enumerate(items):
        if not isinstance(item, one):
            raise SpecError(f"{field}[{index}]: {item!r} is not a {one.__name__}")
    return items


def check_patterns(values: Iterable[object], *, field: str) -> tuple[str, ...]:
    """Return regular expressions as a tuple.

    Args:
        values: The expressions.
        field: Named in messages.

    Raises:
        SpecError: They are not texts, or one is not a regular expression.
    """
    patterns: tuple[str, ...] = check_sequence(values, field=field)
    for pattern in patterns:
        try:
            re.compile(pattern)
        except re.error as mistake:
            raise SpecError(
                f"{field}: {pattern!r} is not a regular expression: {mistake}",
                resolution="re.escape() makes one of a text that is meant word for word",
            ) from None
    return patterns


def put(self: object, name: str, value: object) -> None:
    """Set a field of a frozen spec value; to be called only while the value is being made."""
    object.__setattr__(self, name, value)


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
