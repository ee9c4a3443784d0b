"""Get the image for a reference: from the store, or built at its first use; check references before."""

from __future__ import annotations

import difflib
import hashlib
import time
from collections.abc import Callable, Sequence

from pytest_kvm.errors import UnknownImage
from pytest_kvm.host.locks import OnWait
from pytest_kvm.images import build
from pytest_kvm.images.build_progress import BuildProgress, silent
from pytest_kvm.images.image import Image
from pytest_kvm.images.image_store import ImageStore
from pytest_kvm.images.recipe import Recipe, known_names, recipe_for
from pytest_kvm.settings import Settings
from pytest_kvm.spec.image import ImageRef

OnBuilt = Callable[[str, float], None]
"""Called with the name of what was built and the seconds that the build took."""


def _ignore_built(what: str, seconds: float, /) -> None:
    """Ignore the build."""
    del what, seconds


def ensure(
    ref: ImageRef,
    *,
    settings: Settings,
    packages: Sequence[str] = (),
    refresh: bool = False,
    progress: BuildProgress = silent,
    on_built: OnBuilt = _ignore_built,
) -> Image:
    """Return the image of a reference; build it if it is not in the store or is outdated.

    If several processes need the same image, one of them builds it. The others
    wait, and their progress says for which process.

    Args:
        ref: The image's name, and its digest if the image is pinned.
        settings: Say where the store is.
        packages: Debian packages that the image must have. If the image was
            built from packages, they are built into a derived image. Otherwise
            the image is returned as it is, and its ``packages`` show which
            ones are still missing.
        refresh: Build the named image again, with today's packages.
        progress: Called at each phase of a build.
        on_built: Called after each build that this process did itself.

    Raises:
        UnknownImage: The image is not in the store, and there is no recipe for it.
        ImageError: A package does not exist.
        HostError: This host cannot build the image.
        NoCapacity: The store's disk has no room for it, or another process does not finish its build.
    """
    store = ImageStore.of(settings)
    image = None if refresh else _current(store, ref)
    if image is None:
        image = _build(store, _recipe(store, ref), refresh=refresh, progress=progress, on_built=on_built)
    wanted = tuple(sorted(set(packages)))
    if not wanted or not image.built_from_packages:
        return image
    return _derive(store, image, wanted, progress=progress, on_built=on_built)


def check_known(ref: ImageRef, *, settings: Settings) -> None:
    """Check that :func:`ensure` would find or could build the image; build nothing.

    Raises:
        UnknownImage: The image is not in the store, and there is no recipe for it.
    """
    store = ImageStore.of(settings)
    if store.find(ref) is None:
        _recipe(store, ref)


def derived_name(base: Image, packages: Sequence[str]) -> str:
    """Return the name of the image derived from a base; the same base and packages give the same name."""
    key = "\n".join([base.digest, base.manifest.recipe_version or "", *sorted(set(packages))])
    return f"{base.name[:40]}+{hashlib.sha256(key.encode()).hexdigest()[:16]}"


def _current(store: ImageStore, ref: ImageRef) -> Image | None:
    """Return the store's image; None if there is none, or if it was built from an older recipe."""
    image = store.find(ref)
    if image is None or ref.digest or image.manifest.base is not None:
        return image
    recipe = recipe_for(image.manifest.recipe or "")
    if recipe is not None and recipe.outdates(image.manifest.recipe_version):
        return None
    return image


def _recipe(store: ImageStore, ref: ImageRef) -> Recipe:
    recipe = recipe_for(ref.name)
    if recipe is None or ref.digest:
        raise unknown(ref, store)
    return recipe


def _build(
    store: ImageStore, recipe: Recipe, *, refresh: bool, progress: BuildProgress, on_built: OnBuilt
) -> Image:
    before = store.find(ImageRef(recipe.name))
    with store.building(recipe.name, on_wait=_waiting(recipe.name, progress)) as work:
        now = _current(store, ImageRef(recipe.name))
        # Somebody else may have built it while we waited for the lock.
        if now is not None and not (refresh and before is not None and now.manifest == before.manifest):
            return now
        begun = time.monotonic()
        image = build.build(store, recipe, work=work, progress=progress)
    on_built(recipe.name, time.monotonic() - begun)
    return image


def _derive(
    store: ImageStore, base: Image, packages: tuple[str, ...], *, progress: BuildProgress, on_built: OnBuilt
) -> Image:
    name = derived_name(base, packages)
    if image := store.find(ImageRef(name)):
        return image
    with store.building(name, on_wait=_waiting(name, progress)) as work:
        if image := store.find(ImageRef(name)):
            return image
        begun = time.monotonic()
        image = build.derive(store, base, packages=packages, name=name, work=work, progress=progress)
    on_built(f"{base.name} with {', '.join(packages)}", time.monotonic() - begun)
    return image


def _waiting(name: str, progress: BuildProgress) -> OnWait:
    def tell(holder: str) -> None:
        progress(f"waiting for {name} ({holder})", None)

    return tell


def unknown(ref: ImageRef, store: ImageStore) -> UnknownImage:
    """Return the error for a reference without an image; it suggests the most similar name that has one."""
    names = sorted({*known_names(), *store.names()})
    near = [] if ref.name in names else difflib.get_close_matches(ref.name, names, n=1)
    return UnknownImage(
        f"no image {str(ref)!r}" + (f"; did you mean {near[0]!r}?" if near else ""),
        details=f"can be had here: {', '.join(names)}",
        resolution="pytest-kvm images import FILE --name NAME adds a disk of your own",
    )
