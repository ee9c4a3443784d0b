"""The digest is that of the bytes, however they are stored."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from pytest_kvm.boot_cache.template_files import sparse_digest

BLOCK = 64 * 1024

layouts = st.lists(
    st.tuples(st.booleans(), st.integers(min_value=1, max_value=3 * BLOCK)), min_size=0, max_size=5
)
"""Runs of bytes, zeros or not, with lengths that are no multiples of anything."""


def written(layout, *, with_holes: bool) -> str:
    """Return the digest of a file of this layout, its zeros stored or not."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "file"
        with path.open("wb") as file:
            for is_data, length in layout:
                if is_data:
                    file.write(b"x" * length)
                elif with_holes:
                    file.seek(length, os.SEEK_CUR)
                else:
                    file.write(bytes(length))
            file.truncate(file.tell())
        return sparse_digest(path)


def contents(layout) -> bytes:
    return b"".join((b"x" if is_data else b"\0") * length for is_data, length in layout)


@given(layouts)
def test_holes_and_zeros_are_the_same(layout):
    assert written(layout, with_holes=True) == written(layout, with_holes=False)


@given(layouts, layouts)
def test_other_bytes_have_another_digest(one, other):
    same = contents(one) == contents(other)
    assert (written(one, with_holes=True) == written(other, with_holes=True)) == same


def test_a_flipped_bit_is_seen_wherever_it_is(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(bytes(3 * BLOCK + 17))
    seen = {sparse_digest(path)}
    positions = [0, BLOCK - 1, BLOCK, 2 * BLOCK, 3 * BLOCK, 3 * BLOCK + 16]
    for position in positions:
        with path.open("r+b") as file:
            file.seek(position)
            file.write(b"\1")
            file.flush()
            seen.add(sparse_digest(path))
            file.seek(position)
            file.write(b"\0")
    assert len(seen) == 1 + len(positions)


def test_a_file_of_zeros_is_not_an_empty_one(tmp_path):
    (tmp_path / "empty").touch()
    (tmp_path / "zeros").write_bytes(bytes(10))
    (tmp_path / "more").write_bytes(bytes(11))
    assert len({sparse_digest(tmp_path / name) for name in ("empty", "zeros", "more")}) == 3
