from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_kvm.boot_cache.template_files import FORMAT, Damage, FileRecord, TemplateManifest

RECORD = FileRecord(size=3, sha256="ab", mtime_ns=1, ctime_ns=2, inode=3)
MANIFEST = TemplateManifest(
    key="5ca1ab1e",
    format=FORMAT,
    created="2026-01-01T00:00:00+00:00",
    summary="GuestSpec('mine')",
    versions={"qemu": "7.2"},
    facts={"macs": ["a"], "memory": 512},
    files={"ram": RECORD},
)


@given(
    st.text(),
    st.dictionaries(st.text(), st.none() | st.integers() | st.text() | st.lists(st.booleans())),
)
def test_it_comes_back_as_it_was_written(summary, facts):
    manifest = replace(MANIFEST, summary=summary, facts=facts)
    assert TemplateManifest.from_json(manifest.to_json()) == manifest


@given(st.data())
def test_no_changed_byte_is_believed(data):
    """It is noticed, or it is one that means nothing (the blanks of the layout)."""
    text = MANIFEST.to_json()
    position = data.draw(st.integers(0, len(text) - 1))
    other = data.draw(st.characters(codec="ascii"))
    changed = text[:position] + other + text[position + 1 :]
    with suppress(Damage):
        assert TemplateManifest.from_json(changed) == MANIFEST


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "{}", '{"manifest": {}, "checksum": ""}', "\0"])
def test_what_is_no_manifest_is_damage(text):
    with pytest.raises(Damage, match="cannot be read"):
        TemplateManifest.from_json(text)


def test_another_format_is_not_read():
    with pytest.raises(Damage, match=f"format is 99, not {FORMAT}"):
        TemplateManifest.from_json(replace(MANIFEST, format=99).to_json())


@pytest.mark.parametrize("name", ["../../etc/passwd", "/etc/passwd", "a/b", "", ".", ".."])
def test_a_file_is_in_its_own_folder(name):
    with pytest.raises(Damage, match="not a file's name"):
        TemplateManifest.from_json(replace(MANIFEST, files={name: RECORD}).to_json())


def test_a_field_that_nobody_knows_is_damage():
    manifest = json.loads(MANIFEST.to_json())
    manifest["manifest"]["surprise"] = 1
    with pytest.raises(Damage, match="not what was written"):
        TemplateManifest.from_json(json.dumps(manifest))
