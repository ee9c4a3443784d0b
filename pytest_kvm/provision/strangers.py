"""What lies in the plugin's folders and is not its own: it is left alone, and named."""

from __future__ import annotations

from pytest_kvm.boot_cache.layout import Layout
from pytest_kvm.errors import KvmError
from pytest_kvm.host import run_folder as paths
from pytest_kvm.images.image_store import Store
from pytest_kvm.plaintext import plain
from pytest_kvm.settings import Settings

_MOST = 10


def strangers_named(settings: Settings) -> str:
    """Return the names of what no clean-up touches, as nothing proves that the plugin made it.

    Empty if there is nothing; of many, the first. A folder that cannot be
    looked at is told of as well.
    """
    places = (
        lambda: paths.strangers(settings.run_dir),
        Store.of(settings).strangers,
        Layout.of(settings).strangers,
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
