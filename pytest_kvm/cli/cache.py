"""``pytest-kvm cache``: list, check and remove the templates of the boot cache."""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import asdict
from datetime import UTC, datetime

from pytest_kvm.boot_cache.inventory import Inventory, TemplateInfo
from pytest_kvm.cli.amounts import duration, size
from pytest_kvm.settings import Settings
from pytest_kvm.sizes import parse_kib

_SHORT = 12
"""Digits of a key that are shown; they are enough to tell keys apart."""


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command and its verbs to the parser; each verb sets ``handler``."""
    parser = subparsers.add_parser(
        "cache", help="list, check and remove the templates that guests start from"
    )
    verbs = parser.add_subparsers(required=True, metavar="VERB")
    key_help = "the key, or its first digits"

    verb = verbs.add_parser("list", help="show the templates, those used longest ago first")
    verb.add_argument("--json", action="store_true", help="one JSON document with everything known")
    verb.set_defaults(handler=_list)

    verb = verbs.add_parser("show", help="show what a template was made of, and its files")
    verb.add_argument("key", metavar="KEY", help=key_help)
    verb.set_defaults(handler=_show)

    verb = verbs.add_parser("rm", help="remove templates; the next run that needs one makes it again")
    verb.add_argument("keys", metavar="KEY", nargs="+", help=key_help)
    verb.set_defaults(handler=_remove)

    verb = verbs.add_parser(
        "gc",
        help="remove what is used least until the rest fits",
        description="Remove the templates that were used longest ago until the rest fits, and what killed "
        "runs left. Templates in use stay.",
    )
    verb.add_argument(
        "--size",
        metavar="SIZE",
        help='what may stay, "5GiB" or 0 (default: PYTEST_KVM_CACHE_SIZE, else 20GiB)',
    )
    verb.set_defaults(handler=_collect)

    verb = verbs.add_parser(
        "verify",
        help="read every file and compare it with its digest",
        description="Read every file and compare it with its digest; change nothing. Exit code 1 if a "
        "template is damaged.",
    )
    verb.add_argument("key", metavar="KEY", nargs="?", help=f"{key_help}; all templates without it")
    verb.set_defaults(handler=_verify)


def _list(args: argparse.Namespace, settings: Settings) -> int:
    infos = Inventory.of(settings).list()
    if args.json:
        print(json.dumps([_to_json(info) for info in infos], indent=2))
        return 0
    for info in infos:
        print(
            f"{info.key[:_SHORT]}  {size(info.size):>9}  made {_age_of(info):>6} ago"
            f"  used {_unused_for(info):>6} ago  {'in use' if info.in_use else '':6}  {_summary(info)}"
        )
    total = size(sum(info.size for info in infos))
    print(f"{_count(len(infos))}, {total} of {size(settings.cache_size)}")
    return 0


def _show(args: argparse.Namespace, settings: Settings) -> int:
    inventory = Inventory.of(settings)
    key = inventory.resolve(args.key)
    for info in inventory.list():
        if info.key == key:
            for name, value in _facts(info):
                print(f"{name:10} {value}")
    return 0


def _remove(args: argparse.Namespace, settings: Settings) -> int:
    inventory = Inventory.of(settings)
    keys = [inventory.resolve(prefix) for prefix in args.keys]
    in_use = {info.key for info in inventory.list() if info.in_use}
    for key in keys:
        inventory.remove(key)
        note = ": its files go when the run that uses it closes it" if key in in_use else ""
        print(f"removed {key[:_SHORT]}{note}")
    return 0


def _collect(args: argparse.Namespace, settings: Settings) -> int:
    removed = Inventory.of(settings).collect(cap=_cap(args.size, settings))
    for info in removed:
        print(f"removed {info.key[:_SHORT]}  {size(info.size):>9}  {_summary(info)}")
    print(f"{_count(len(removed))} removed, {size(sum(info.size for info in removed))}")
    return 0


def _verify(args: argparse.Namespace, settings: Settings) -> int:
    inventory = Inventory.of(settings)
    keys = [inventory.resolve(args.key)] if args.key else [info.key for info in inventory.list()]
    problems = inventory.verify(keys)
    for problem in problems:
        print(f"{problem.key[:_SHORT]}  {problem.what}")
    damaged = len({problem.key for problem in problems})
    print(f"{_count(len(keys))} read, {damaged or 'none'} damaged")
    return 1 if damaged else 0


def _cap(text: str | None, settings: Settings) -> int:
    if text is None:
        return settings.cache_size
    return 0 if text == "0" else parse_kib(text, field="--size") * 1024


def _to_json(info: TemplateInfo) -> dict[str, object]:
    return {
        "key": info.key,
        "folder": str(info.folder),
        "size": info.size,
        "last_used": datetime.fromtimestamp(info.last_used, UTC).isoformat(),
        "in_use": info.in_use,
        "manifest": asdict(info.manifest) if info.manifest else None,
    }


def _facts(info: TemplateInfo) -> list[tuple[str, str]]:
    facts = [
        ("key", info.key),
        ("folder", str(info.folder)),
        ("size", size(info.size)),
        ("last used", f"{_unused_for(info)} ago{', in use now' if info.in_use else ''}"),
        ("spec", _summary(info)),
    ]
    if info.manifest is None:
        return facts
    facts.append(("made", f"{info.manifest.created}, {_age_of(info)} ago"))
    facts.append(("with", ", ".join(f"{name} {version}" for name, version in info.manifest.versions.items())))
    facts += [
        ("file", f"{name}  {size(file.size)}  {file.sha256[:_SHORT]}")
        for name, file in info.manifest.files.items()
    ]
    facts += [("fact", f"{name} = {value!r}") for name, value in info.manifest.facts.items()]
    return facts


def _summary(info: TemplateInfo) -> str:
    return info.manifest.summary if info.manifest else "damaged: the next use drops it"


def _age_of(info: TemplateInfo) -> str:
    if info.manifest is None:
        return "?"
    return duration(time.time() - datetime.fromisoformat(info.manifest.created).timestamp())


def _unused_for(info: TemplateInfo) -> str:
    return duration(time.time() - info.last_used)


def _count(count: int) -> str:
    return "1 template" if count == 1 else f"{count} templates"
