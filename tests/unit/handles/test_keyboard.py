from __future__ import annotations

import string

import pytest

from pytest_kvm.errors import SpecError
from pytest_kvm.handles.keyboard import chord, chords_of


def test_chords_are_pressed_together():
    assert chord("ctrl-alt-delete") == [29, 56, 111]
    assert chord("Ctrl-Alt-F2") == [29, 56, 60]
    assert chord("enter") == [28]


def test_an_unknown_key_names_the_known_ones():
    with pytest.raises(SpecError, match=r"no key is named 'hyper'(.|\n)*sysrq"):
        chord("hyper-x")


def test_text_is_typed_as_on_a_us_keyboard():
    assert chords_of("aA1!-_\n") == [[30], [42, 30], [2], [42, 2], [12], [42, 12], [28]]
    assert len(chords_of(string.printable[:95])) == 95


@pytest.mark.parametrize("character", ["ä", "\x00", "€"])
def test_a_character_without_a_key_is_refused(character):
    with pytest.raises(SpecError, match="not on a US keyboard"):
        chords_of(character)
