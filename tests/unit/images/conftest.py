from __future__ import annotations

import hashlib
from typing import Any

import pytest

from pytest_kvm.images.image import ImageManifest
from pytest_kvm.images.image_store import ImageStore
from pytest_kvm.settings import Settings


@pytest.fixture
def settings(tmp_path):
    return Settings(cache_dir=tmp_path / "cache", run_dir=tmp_path / "run")


@pytest.fixture
def store(settings):
    return ImageStore.of(settings)


@pytest.fixture
def publish(store, tmp_path):
    """Put an image of given contents into the store, without any build."""

    def publish(name: str, contents: bytes, **fields: Any):
        with store.building(name) as work:
            (work / "disk").write_bytes(contents)
            digest = hashlib.sha256(contents).hexdigest()
            manifest = ImageManifest(
                name=name,
                disk=digest,
                virtual_size=len(contents),
                created="2026-01-01T00:00:00+00:00",
                **fields,
            )
            return store.add(manifest, {digest: work / "disk"})

    return publish
