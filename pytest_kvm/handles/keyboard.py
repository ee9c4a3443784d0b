"""Translates names of keys and text to Linux keycodes (``linux/input-event-codes.h``)."""

from __future__ import annotations

from pytest_kvm.errors import SpecError

_ROWS = (
    (1, ("esc", *"1234567890", "minus", "equal", "backspace")),
    (15, ("tab", *"qwertyuiop", "leftbrace", "rightbrace", "enter", "ctrl")),
    (30, (*"asdfghjkl", "semicolon", "apostrophe", "grave", "shift", "backslash")),
    (44, (*"zxcvbnm", "comma", "dot", "slash", "rightshift", "kpasterisk", "alt", "space", "capslock")),
    (59, tuple(f"f{number}" for number in range(1, 11))),
    (87, ("f11", "f12")),
    (102, ("home", "up", "pageup", "left", "right", "end", "down", "pagedown", "insert", "delete")),
)
KEYCODES: dict[str, int] = {
    name: first + place for first, names in _ROWS for place, name in enumerate(names)
} | {"sysrq": 99, "rightctrl": 97, "rightalt": 100, "meta": 125}
_TYPED = {" ": "space", "\n": "enter", "\t": "tab", "-": "minus", "=": "equal", ".": "dot", ",": "comma"} | {
    "/": "slash",
    ";": "semicolon",
    "'": "apostrophe",
    "`": "grave",
    "\\": "backslash",
    "[": "leftbrace",
    "]": "rightbrace",
}
_SHIFTED = dict(zip('!@#$%^&*()_+{}:"~|<>?', "1234567890-=[];'`\\,./", strict=True))


def chord(keys: str) -> list[int]:
    """Return the keycodes of keys pressed together.

    Args:
        keys: "enter", "ctrl-alt-f2", "ctrl-alt-delete".

    Raises:
        SpecError: A key of that name is not known.
    """
    try:
        return [KEYCODES[name] for name in keys.lower().split("-")]
    except KeyError as unknown:
        raise SpecError(
            f"send_keys: {keys!r}: no key is named {unknown.args[0]!r}",
            resolution=f"known are {', '.join(KEYCODES)}",
        ) from None


def chords_of(text: str) -> list[list[int]]:
    """Return one chord per character, for a guest with a US keyboard layout.

    Raises:
        SpecError: A character is not on that keyboard.
    """
    return [_character(character) for character in text]


def _character(character: str) -> list[int]:
    shift = character.isupper() or character in _SHIFTED
    plain = _SHIFTED.get(character, character.lower())
    name = _TYPED.get(plain, plain)
    if name not in KEYCODES or len(plain) != 1:
        raise SpecError(
            f"type: {character!r} is not on a US keyboard", resolution="use console.send() or write_text()"
        )
    return [*([KEYCODES["shift"]] if shift else []), KEYCODES[name]]
