"""``Condition``: how a test says which packets it means."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, TypeAlias, Union

from pytest_kvm.errors import SpecError

if TYPE_CHECKING:
    from pytest_kvm.switch.packets import Packet

Condition: TypeAlias = Union[str, "Callable[[Packet], bool]"]
"""A filter expression as tcpdump has it (pcap-filter(7)), or a function that is true of the packets."""


def check_condition(condition: object, *, field: str) -> None:
    """Refuse what is no condition; whether a filter expression is right is seen when it is compiled.

    Raises:
        SpecError: It is no text and no function; names the field.
    """
    if not (isinstance(condition, str) or callable(condition)):
        raise SpecError(f"{field}: {condition!r} is neither a filter expression nor a function of a packet")


def name_of(condition: Condition) -> str:
    """Return a condition in words: the expression, or the function's name."""
    return str(getattr(condition, "__name__", repr(condition)))


def as_predicate(condition: Condition, *, field: str) -> Callable[[Packet], bool]:
    """Return a condition as a function.

    Raises:
        MissingDependency: libpcap, which compiles filter expressions, is not installed.
        SpecError: The condition is wrong.
    """
    check_condition(condition, field=field)
    if not isinstance(condition, str):
        return condition
    from pytest_kvm.switch.filters import FrameFilter, compile_filter  # noqa: PLC0415 - loads ctypes

    matches = FrameFilter(compile_filter(condition)).matches
    return lambda packet: matches(packet.raw)
