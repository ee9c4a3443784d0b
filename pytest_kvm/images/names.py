"""Check image names against the store and the recipes, without building or loading anything big."""

from __future__ import annotations

import difflib

from pytest_kvm.errors import UnknownImage
from pytest_kvm.images.image_store import Store
from pytest_kvm.images.recipe import known_names, recipe_for
from pytest_kvm.settings import Settings
from pytest_kvm.spec.image import ImageRef


def check_known(ref: ImageRef | None, settings: Settings) -> None:
    """Check that an image is in the store or can be built, so that a mistake shows at collection.

    Args:
        ref: The image that a guest asks for; None for the run's default image.
        settings: Say where the store is, and name the default image.

    Raises:
        UnknownImage: The image is not in the store and cannot be built.
    """
    wanted = ref or ImageRef(settings.default_image)
    if recipe_for(wanted.name) is not None and not wanted.digest:
        return
    store = Store.of(settings)
    if store.find(wanted) is None:
        raise unknown(wanted, store)


def unknown(ref: ImageRef, store: Store) -> UnknownImage:
    """Return the error for a reference without an image; it suggests the most similar name that has one."""
    names = sorted({*known_names(), *store.names()})
    near = [] if ref.name in names else difflib.get_close_matches(ref.name, names, n=1)
    return UnknownImage(
        f"no image {str(ref)!r}" + (f"; did you mean {near[0]!r}?" if near else ""),
        details=f"can be had here: {', '.join(names)}",
        resolution="pytest-kvm images import FILE --name NAME adds a disk of your own",
    )
