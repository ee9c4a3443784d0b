"""Renders the texts that cloud-init reads: user-data, meta-data, vendor-data, network-config.

Keys: https://docs.cloud-init.io/en/latest/reference/modules.html and
https://docs.cloud-init.io/en/latest/reference/network-config-format-v2.html.
"""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from email.mime.multipart import MIMEMultipart
from email.mime.text import MIMEText
from ipaddress import ip_address
from typing import Any, cast

import yaml

from pytest_kvm.render.plan import NicPlan, SegmentNicPlan
from pytest_kvm.spec.cloudinit import CloudInit, File, User
from pytest_kvm.spec.guest import GuestSpec
from pytest_kvm.spec.nic import CONTROL_ADDRESS, CONTROL_DNS, CONTROL_GATEWAY
from pytest_kvm.spec.user_data import CLOUD_CONFIG, header_of, parse_cloud_config

_HEADER = "#cloud-config\n"
_EVERYWHERE = {4: "0.0.0.0/0", 6: "::/0"}
"""Not "default": cloud-init before 24.1 passes that word to networkd as if it were an address."""


@dataclass(frozen=True, kw_only=True)
class Identity:
    """Names and keys of one machine that boots; made anew for each."""

    instance_id: str
    hostname: str
    authorized_key: str
    """The public key that may log in."""
    host_private_key: str
    """The guest's SSH host key (ed25519), given so that it is known before the first connection."""
    host_public_key: str


def user_data(spec: GuestSpec, identity: Identity, *, packages: Sequence[str]) -> str:
    """Return the user-data: one cloud-config, or a MIME archive with the user's own part.

    Args:
        spec: What the guest is made of.
        identity: Names and keys of this machine.
        packages: Packages that cloud-init is to install, as the image does not have them.
    """
    config = _generate(spec, identity, packages)
    raw = spec.cloud_init.user_data
    if isinstance(raw, str) and header_of(raw) != CLOUD_CONFIG:
        return _archive(_dump(config), raw)
    if raw is not None:
        given = parse_cloud_config(raw, field="CloudInit.user_data") if isinstance(raw, str) else raw
        config = merge(config, given)
    return _dump(config)


def meta_data(identity: Identity) -> str:
    """Return NoCloud's meta-data; a new instance-id makes cloud-init run its per-instance modules."""
    return yaml.safe_dump(
        {"instance-id": identity.instance_id, "local-hostname": identity.hostname}, sort_keys=False
    )


def vendor_data(cloud_init: CloudInit) -> str | None:
    """Return the vendor-data; None if the spec has none."""
    return None if cloud_init.vendor_data is None else _dump(cloud_init.vendor_data)


def network_config(spec: GuestSpec, *, control_mac: str, nics: Sequence[NicPlan]) -> str:
    """Return the network configuration, version 2.

    The control card has QEMU's fixed user-mode address: a static address is set
    seconds earlier than a leased one, and it does not expire.
    """
    control: dict[str, Any] = {
        "match": {"macaddress": control_mac},
        "addresses": [f"{CONTROL_ADDRESS}/24"],
        "dhcp4": False,
        "dhcp6": False,
        "accept-ra": False,
        "optional": True,
    }
    if spec.internet:
        control["routes"] = [{"to": _EVERYWHERE[4], "via": CONTROL_GATEWAY}]
        control["nameservers"] = {"addresses": [CONTROL_DNS]}
    ethernets: dict[str, Any] = {"kvm-control": control}
    for planned in nics:
        ethernets[f"kvm-nic{planned.index + 1}"] = _card(planned)
    config = merge({"version": 2, "ethernets": ethernets}, spec.cloud_init.network_config or {})
    return yaml.safe_dump(config, sort_keys=False)


def _card(planned: NicPlan) -> dict[str, Any]:
    card: dict[str, Any] = {"match": {"macaddress": planned.mac}, "dhcp4": planned.nic.uses_dhcp}
    if planned.nic.uses_dhcp:
        card["dhcp4-overrides"] = {"use-routes": False}
    if isinstance(planned, SegmentNicPlan):
        card |= {"addresses": list(planned.addresses), "mtu": planned.mtu}
        if planned.gateways:
            card["routes"] = [
                {"to": _EVERYWHERE[ip_address(each).version], "via": each, "metric": planned.metric}
                for each in planned.gateways
            ]
    return card | {"optional": True}


def merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Return ``base`` with ``over`` merged in: mappings by key, lists appended, all other values replaced."""
    merged = dict(base)
    for key, value in over.items():
        have = merged.get(key)
        if isinstance(have, Mapping) and isinstance(value, Mapping):
            merged[key] = merge(cast("Mapping[str, Any]", have), cast("Mapping[str, Any]", value))
        elif isinstance(have, list) and isinstance(value, (list, tuple)):
            merged[key] = [*have, *cast("Sequence[Any]", value)]
        else:
            merged[key] = value
    return merged


def _generate(spec: GuestSpec, identity: Identity, packages: Sequence[str]) -> dict[str, Any]:
    config: dict[str, Any] = {
        "hostname": identity.hostname,
        "manage_etc_hosts": "localhost",
        "disable_root": False,
        "ssh_deletekeys": False,
        # If keys are given, cloud-init makes none: an RSA key alone takes ten
        # seconds of a boot under TCG.
        "ssh_keys": {
            "ed25519_private": identity.host_private_key,
            "ed25519_public": identity.host_public_key,
        },
        "users": _users(spec, identity),
    }
    if spec.timezone is not None:
        config["timezone"] = spec.timezone
    if spec.cloud_init.files:
        config["write_files"] = [_file(file) for file in spec.cloud_init.files]
    if packages:
        config |= {"package_update": True, "packages": list(packages)}
    if spec.cloud_init.run_commands:
        # cloud-init makes one shell script of the commands. Without -e its exit
        # code is that of the last command, and all other failures are hidden.
        commands = [each if isinstance(each, str) else list(each) for each in spec.cloud_init.run_commands]
        config["runcmd"] = ["set -e", *commands]
    return config


def _users(spec: GuestSpec, identity: Identity) -> list[dict[str, Any]]:
    names = {user.name for user in spec.cloud_init.users}
    users = [_user(user, identity) for user in spec.cloud_init.users]
    if spec.login == "root":
        return [
            {"name": "root", "lock_passwd": True, "ssh_authorized_keys": [identity.authorized_key]},
            *users,
        ]
    if spec.login not in names:
        return [_user(User(spec.login), identity), *users]
    return users


def _user(user: User, identity: Identity) -> dict[str, Any]:
    entry: dict[str, Any] = {
        "name": user.name,
        "shell": user.shell,
        "lock_passwd": True,
        "ssh_authorized_keys": [identity.authorized_key, *user.authorized_keys],
    }
    if user.groups:
        entry["groups"] = list(user.groups)
    if user.sudo:
        entry["sudo"] = "ALL=(ALL) NOPASSWD:ALL"
    return entry


def _file(file: File) -> dict[str, Any]:
    # "defer" has the file written after users are made, so that one of them may own it.
    entry: dict[str, Any] = {"path": file.path, "permissions": f"{file.mode:04o}", "owner": file.owner}
    if isinstance(file.content, bytes):
        entry |= {"encoding": "b64", "content": b64encode(file.content).decode()}
    else:
        entry["content"] = file.content
    return entry if file.owner.startswith("root") else entry | {"defer": True}


def _dump(config: Mapping[str, Any]) -> str:
    return _HEADER + yaml.safe_dump(dict(config), sort_keys=False, allow_unicode=True, width=1000)


def _archive(config: str, raw: str) -> str:
    # A fixed boundary keeps the seed the same for the same input. cloud-init
    # recognizes the kind of a "text/plain" part by its first line.
    archive = MIMEMultipart(boundary="==pytest-kvm-part==")
    for name, text in (("pytest-kvm.cfg", config), ("user-data", raw)):
        kind = "cloud-config" if name.endswith(".cfg") else "plain"
        part = MIMEText(text, kind, "utf-8")
        part.add_header("Content-Disposition", "attachment", filename=name)
        archive.attach(part)
    return archive.as_string()
