"""Finds files in the plugin's folders that the plugin did not make: they are reported, never removed."""

from __future__ import annotations

from pytest_kvm.boot_cache.layout import Layout
from pytest_kvm.errors import KvmError
from pytest_kvm.host import run_folder as paths
from pytest_kvm.images.image_store import ImageStore
from pytest_kvm.plaintext import plain
from pytest_kvm.settings import Settings

_MOST = 10


def foreign_files_text(settings: Settings) -> str:
    """Return the paths that clean-up leaves alone, because nothing proves that the plugin made them.

    The text is empty if there are none; of many paths it has the first ones and
    the number of the rest. A folder that cannot be read is reported as well.
    """
    places = (
        lambda: paths.foreign_files(settings.run_dir),
        ImageStore.of(settings).foreign_files,
        Layout.of(settings).foreign_files,
    )
    said: list[str] = []
    for look in places:
        try:
            said += [str(path) for path in look()]
        except KvmError as error:
            said.append(error.brief)
        except OSError as error:
            said.append(f"{error.filename} cannot be read: {error.strerror}")
    more = [f"{len(said) - _MOST} more"] if len(said) > _MOST else []
    return ", ".join([plain(each).replace("\n", "?") for each in said[:_MOST]] + more)
