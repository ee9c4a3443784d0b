"""What cloud-init does in the guest at its first boot.

Field meanings follow https://docs.cloud-init.io/en/latest/reference/modules.html.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import field
from typing import Any, Literal, cast

from pytest_kvm.errors import SpecError
from pytest_kvm.spec.user_data import check_config, check_text, check_values
from pytest_kvm.spec.value import check_choice, check_sequence, put, spec_value

Datasource = Literal["nocloud", "configdrive"]
_USER = re.compile(r"[a-z_][a-z0-9_-]{0,31}")
_OWNER = re.compile(r"[a-z_][a-z0-9_-]{0,31}(:[a-z_][a-z0-9_-]{0,31})?")
_MODE_LIMIT = 0o7777


@spec_value
class User:
    """A user made at first boot. The plugin's SSH key may log in as this user."""

    name: str = field(kw_only=False)
    sudo: bool = True
    """Whether the user may run everything by ``sudo`` without a password."""
    groups: Sequence[str] = ()
    shell: str = "/bin/bash"
    authorized_keys: Sequence[str] = ()
    """Further public keys, in authorized_keys format."""

    def __post_init__(self) -> None:
        """Check names and freeze lists."""
        if not isinstance(self.name, str) or not _USER.fullmatch(self.name):
            raise SpecError(f"User.name: {self.name!r} is not a user name (see useradd(8))")
        if self.name == "root":
            raise SpecError(
                "User.name: root exists already", resolution="leave it out: commands run as root by default"
            )
        put(self, "groups", check_sequence(self.groups, field="User.groups"))
        put(self, "authorized_keys", check_sequence(self.authorized_keys, field="User.authorized_keys"))


@spec_value
class File:
    """A file written at first boot."""

    path: str = field(kw_only=False)
    """Absolute path in the guest."""
    content: str | bytes = field(default="", kw_only=False)
    mode: int = 0o644
    owner: str = "root:root"

    def __post_init__(self) -> None:
        """Check path, content, mode and owner."""
        if not isinstance(self.path, str) or not self.path.startswith("/") or "\0" in self.path:
            raise SpecError(f"File.path: {self.path!r} is not an absolute path")
        if not isinstance(self.content, (str, bytes)):
            raise SpecError(f"File.content: {type(self.content).__name__} is neither str nor bytes")
        if not isinstance(self.mode, int) or not 0 <= self.mode <= _MODE_LIMIT:
            raise SpecError(
                f"File.mode: {self.mode!r} is not a file mode", resolution="write it in octal: 0o644"
            )
        if not _OWNER.fullmatch(self.owner):
            raise SpecError(f"File.owner: {self.owner!r} is not user or user:group")


@spec_value
class CloudInit:
    """What the seed tells cloud-init, in addition to what the plugin itself needs."""

    users: Sequence[User] = ()
    files: Sequence[File] = ()
    run_commands: Sequence[str | Sequence[str]] = ()
    """Commands for cloud-init's ``runcmd``: a string is run by the shell, a list without one.
    A command that fails makes the boot fail."""
    user_data: Mapping[str, Any] | str | None = None
    """Merged over what the plugin generates: mappings by key, lists appended,
    scalars replaced. A text that is no ``#cloud-config`` (a script, an include)
    becomes a further part of a MIME multi-part archive. When the spec is made,
    texts that cloud-init would ignore, invalid YAML and keys with values of a
    wrong type are refused."""
    network_config: Mapping[str, Any] | None = None
    """Netplan version 2 keys (``ethernets``, ``bridges``, …) merged over the generated ones."""
    vendor_data: Mapping[str, Any] | None = None
    datasource: Datasource = "nocloud"

    def __post_init__(self) -> None:
        """Check the fields and freeze the lists."""
        put(self, "users", check_sequence(self.users, field="CloudInit.users", one=User))
        put(self, "files", check_sequence(self.files, field="CloudInit.files", one=File))
        put(self, "run_commands", _checked_commands(self.run_commands))
        for name in ("user_data", "network_config", "vendor_data"):
            value: object = getattr(self, name)
            if isinstance(value, Mapping):
                put(self, name, deepcopy(dict(cast("Mapping[str, Any]", value))))
                check_values(getattr(self, name), field=f"CloudInit.{name}")
                if name != "network_config":
                    check_config(getattr(self, name), field=f"CloudInit.{name}")
            elif value is not None and not (name == "user_data" and isinstance(value, str)):
                raise SpecError(f"CloudInit.{name}: {type(value).__name__} is not a mapping")
        if isinstance(self.user_data, str):
            check_text(self.user_data, field="CloudInit.user_data")
        check_choice(self.datasource, Datasource, field="CloudInit.datasource")
        if self.datasource == "configdrive" and self.network_config is not None:
            raise SpecError(
                "CloudInit.network_config: a ConfigDrive carries OpenStack's network_data.json, not netplan",
                resolution='use datasource="nocloud" with network_config',
            )
        _check_unique([user.name for user in self.users], field="CloudInit.users")
        _check_unique([file.path for file in self.files], field="CloudInit.files")


def _checked_commands(commands: Sequence[str | Sequence[str]]) -> tuple[str | tuple[str, ...], ...]:
    if isinstance(commands, (str, bytes)):
        raise SpecError(
            f"CloudInit.run_commands: {commands!r} is one command, a list is wanted",
            resolution=f"write [{commands!r}]",
        )
    return tuple(
        command
        if isinstance(command, str)
        else check_sequence(command, field=f"CloudInit.run_commands[{index}]")
        for index, command in enumerate(commands)
    )


def _check_unique(names: list[str], *, field: str) -> None:
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise SpecError(f"{field}: {', '.join(twice)} stands there twice")
