"""``pytest-kvm images``: build, import, list, remove images."""

from __future__ import annotations

import argparse
import json
import sys
from typing import TYPE_CHECKING

from pytest_kvm.cli.command_progress import shown_progress
from pytest_kvm.images import importing
from pytest_kvm.images.ensure import OnBuilt, ensure
from pytest_kvm.images.image_store import ImageStore
from pytest_kvm.provision.events import Event, EventLog, ignore
from pytest_kvm.settings import Settings
from pytest_kvm.spec.image import ImageRef

if TYPE_CHECKING:
    from pytest_kvm.images.image import Image

_GIB = 1024**3


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command and its verbs to the parser; each verb sets ``handler``."""
    parser = subparsers.add_parser("images", help="build, import, list and remove guest images")
    verbs = parser.add_subparsers(required=True, metavar="VERB")

    verb = verbs.add_parser("build", help="build an image from Debian packages")
    verb.add_argument("name", help="debian-13, debian-12")
    verb.add_argument("--refresh", action="store_true", help="build it again, with today's packages")
    verb.set_defaults(handler=_build)

    verb = verbs.add_parser("import", help="take a qcow2 or raw disk, a file or an address, into the store")
    verb.add_argument("source", metavar="FILE|URL")
    verb.add_argument("--name", required=True, help="the name guests ask for it by")
    verb.add_argument("--sha256", help="the digest the file must have")
    verb.set_defaults(handler=_import)

    verb = verbs.add_parser("list", help="show the images of the store")
    verb.add_argument("--json", action="store_true", help="one JSON document with everything known")
    verb.set_defaults(handler=_list)

    verb = verbs.add_parser("rm", help="remove an image")
    verb.add_argument("name")
    verb.set_defaults(handler=_remove)

    verb = verbs.add_parser("path", help="print the path of an image's disk")
    verb.add_argument("name")
    verb.set_defaults(handler=_path)


def _build(args: argparse.Namespace, settings: Settings) -> int:
    with shown_progress(args.name) as progress:
        image = ensure(
            ImageRef(args.name),
            settings=settings,
            refresh=args.refresh,
            progress=progress,
            on_built=_tell_of_builds(settings),
        )
    print(f"{image.name}  sha256:{image.digest[:12]}  {image.disk}")
    return 0


def _tell_of_builds(settings: Settings) -> OnBuilt:
    """Return a function that writes builds of images to the file of events."""
    tell = EventLog(settings.events).tell if settings.events else ignore
    return lambda what, seconds: tell(Event(guest="", kind="image", seconds=seconds, why=what))


def _import(args: argparse.Namespace, settings: Settings) -> int:
    with shown_progress(args.name) as progress:
        image = importing.take(
            ImageStore.of(settings), args.source, name=args.name, sha256=args.sha256, progress=progress
        )
    print(f"{image.name}  sha256:{image.digest[:12]}  {image.disk}")
    return 0


def _list(args: argparse.Namespace, settings: Settings) -> int:
    store = ImageStore.of(settings)
    images = store.list()
    for problem in store.damaged():
        print(f"pytest-kvm: warning: {problem}", file=sys.stderr)
    if args.json:
        print(json.dumps([_to_json(image) for image in images], indent=2))
        return 0
    for image in images:
        size = f"{image.disk.stat().st_size / _GIB:.1f} of {image.virtual_size / _GIB:.0f} GiB"
        origin = image.manifest.recipe or image.manifest.source
        extra = f" + {' '.join(image.packages)}" if image.packages else ""
        print(
            f"{image.name:32} {image.digest[:12]}  {size:15}  {image.manifest.created[:10]}  {origin}{extra}"
        )
    return 0


def _remove(args: argparse.Namespace, settings: Settings) -> int:
    ImageStore.of(settings).remove(args.name)
    return 0


def _path(args: argparse.Namespace, settings: Settings) -> int:
    print(ImageStore.of(settings).resolve(ImageRef(args.name)).disk)
    return 0


def _to_json(image: Image) -> dict[str, object]:
    return {
        **json.loads(image.manifest.to_json()),
        "disk_path": str(image.disk),
        "size": image.disk.stat().st_size,
    }
