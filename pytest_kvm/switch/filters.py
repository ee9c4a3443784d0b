"""Filter expressions of pcap-filter(7): libpcap compiles and applies them.

https://www.tcpdump.org/manpages/pcap-filter.7.html. The test's process compiles
an expression into a program, because that may ask name servers; the switch's
process applies the program to frames.
"""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Callable, Iterator, Sequence
from functools import cache, partial
from typing import Any, NamedTuple

from pytest_kvm.errors import MissingDependency, SpecError
from pytest_kvm.switch.frames import LONGEST, frames_in

_LIBRARIES = ("libpcap.so.1", "libpcap.so.0.8")
"""Debian and its derivatives call it ``libpcap.so.0.8``."""
_ETHERNET = 1
"""``DLT_EN10MB``."""
_OPTIMIZE = 1
_NETMASK_UNKNOWN = 0xFFFFFFFF
_LONGEST_EXPRESSION = 2000
"""Characters. A list of 300 ports has more, and takes libpcap seconds; 500 ports take minutes."""

_INSTRUCTION = struct.Struct("=HBBI")
"""``struct bpf_insn``: the code, two distances of a conditional jump, and the operand."""
_JUMP = 0x05
_BACKWARD = 1 << 31
_CLASS_AND_MODE = 0xE7
_LOAD_AT = 0x20
_BESIDE_FRAME = 0xFFFFF000
"""From this offset on, Linux has what it knows of a frame beside its bytes (``SKF_AD_OFF``)."""


class _Program(ctypes.Structure):
    """``struct bpf_program``."""

    _fields_ = (("length", ctypes.c_uint), ("instructions", ctypes.c_void_p))


def compile_filter(expression: str) -> bytes:
    """Compile a filter expression into a program for :class:`FrameFilter`.

    Raises:
        MissingDependency: libpcap is not installed.
        SpecError: The expression is wrong.
    """
    if not expression.strip():
        raise _mistake(expression, "it is empty; 'len >= 0' means all frames")
    if "\0" in expression:
        raise _mistake(expression, "it has a zero byte")
    if len(expression) > _LONGEST_EXPRESSION:
        raise _mistake(
            f"{expression[:40]}…", f"it is longer than {_LONGEST_EXPRESSION} characters; use a function"
        )
    libpcap, program = _compiler(), _Program()
    handle = libpcap.pcap_open_dead(_ETHERNET, LONGEST)
    try:
        text = expression.encode(errors="replace")
        if libpcap.pcap_compile(handle, ctypes.byref(program), text, _OPTIMIZE, _NETMASK_UNKNOWN):
            raise _mistake(expression, libpcap.pcap_geterr(handle).decode(errors="replace"))
        try:
            compiled = ctypes.string_at(program.instructions, program.length * _INSTRUCTION.size)
        finally:
            libpcap.pcap_freecode(ctypes.byref(program))
    finally:
        libpcap.pcap_close(handle)
    _check_program(compiled, expression)
    return compiled


def _check_program(program: bytes, expression: str) -> None:
    """Refuse what libpcap compiles, and does not apply rightly to frames that no interface has received."""
    for code, _, _, operand in _INSTRUCTION.iter_unpack(program):
        if code == _JUMP and operand >= _BACKWARD:
            raise _mistake(expression, "a guest can send frames for which 'protochain' never ends")
        if code & _CLASS_AND_MODE == _LOAD_AT and operand >= _BESIDE_FRAME:
            raise _mistake(
                expression,
                "'inbound', 'outbound' and 'ifindex' cannot be told from a frame;"
                " use the arguments link and direction, or a function",
            )


def _mistake(expression: str, words: str) -> SpecError:
    return SpecError(
        f"the filter expression {expression!r}: {words}",
        resolution="pcap-filter(7) describes the language, which is that of tcpdump",
    )


class FrameFilter:
    """A compiled filter expression.

    Args:
        program: What :func:`compile_filter` returned.

    Raises:
        MissingDependency: libpcap is not installed.
    """

    def __init__(self, program: bytes) -> None:
        self._program = ctypes.create_string_buffer(program, len(program))
        self.matches_at: Callable[[int, int, int], int] = partial(
            _bpf_filter(), ctypes.addressof(self._program)
        )
        """``bpf_filter`` with the program: takes a frame's address, and its length twice; 0 is no match.

        It is no method, because a call more would make it half as slow again.
        """

    def matches(self, frame: bytes) -> bool:
        """Say whether the filter matches a frame."""
        return bool(self.matches_at(_address_of(frame), len(frame), len(frame)))


class FrameRun(NamedTuple):
    """Frames that came one after another."""

    data: bytes
    """The frames, each preceded by its length."""
    frames: int
    is_matched: bool
    """Whether a filter matches them: all, or none."""


def split(data: bytes, filters: Sequence[FrameFilter]) -> Iterator[FrameRun]:
    """Split frames, each preceded by its length, into runs; what follows the last whole frame is left out.

    Raises:
        BrokenStreamError: The bytes cannot be frames.
    """
    # Mostly there is one filter; a loop for it would cost as much as the filter.
    first, *others = [each.matches_at for each in filters]
    address = _address_of(data)
    begin = last = frames = 0
    was_matched = False
    for at, end in frames_in(data):
        length = end - at
        matched = first(address + at, length, length) != 0
        if others and not matched:
            matched = any(test(address + at, length, length) for test in others)
        if matched is not was_matched:
            if frames:
                yield FrameRun(data[begin:last], frames, was_matched)
            begin, frames, was_matched = last, 0, matched
        frames += 1
        last = end
    if frames:
        yield FrameRun(data[begin:last], frames, was_matched)


def _address_of(data: bytes) -> int:
    return ctypes.cast(ctypes.c_char_p(data), ctypes.c_void_p).value or 0


@cache
def _compiler() -> ctypes.CDLL:
    """Return libpcap for compiling. Other threads run on during its calls, as one may ask name servers."""
    libpcap = _load(ctypes.CDLL)
    libpcap.pcap_open_dead.restype = ctypes.c_void_p
    libpcap.pcap_close.argtypes = [ctypes.c_void_p]
    libpcap.pcap_close.restype = None
    pointer = ctypes.POINTER(_Program)
    integers = [ctypes.c_int, ctypes.c_uint]
    libpcap.pcap_compile.argtypes = [ctypes.c_void_p, pointer, ctypes.c_char_p, *integers]
    libpcap.pcap_freecode.argtypes = [pointer]
    libpcap.pcap_freecode.restype = None
    libpcap.pcap_geterr.argtypes = [ctypes.c_void_p]
    libpcap.pcap_geterr.restype = ctypes.c_char_p
    return libpcap


@cache
def _bpf_filter() -> Callable[..., int]:
    """Return libpcap's function that applies a program. Its calls are too short to let other threads run."""
    function: Any = _load(ctypes.PyDLL).bpf_filter
    function.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint]
    function.restype = ctypes.c_uint
    applied: Callable[..., int] = function
    return applied


def _load(loader: Callable[[str], ctypes.CDLL]) -> ctypes.CDLL:
    problems: list[str] = []
    for name in _LIBRARIES:
        try:
            return loader(name)
        except OSError as error:
            problems.append(str(error))
    from pytest_kvm.host.install_hints import install_hint  # noqa: PLC0415 - for an error only

    raise MissingDependency(
        "filter expressions need libpcap, which cannot be loaded",
        resolution=install_hint("libpcap"),
        details="\n".join(problems),
    )
