"""Checks user-data as cloud-init reads it, before a guest is booted.

cloud-init recognizes the kind of a text by its beginning. It ignores a text of
an unknown kind, with a line in its log (``INCLUSION_TYPES_MAP`` in cloudinit/handlers,
https://docs.cloud-init.io/en/latest/explanation/format.html). If a key
has a value of a wrong type, its module fails, minutes into the boot.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, cast

from pytest_kvm.errors import SpecError

if TYPE_CHECKING:
    import yaml
    from yaml.error import Mark

CLOUD_CONFIG = "#cloud-config"
_HEADERS = (
    "#cloud-boothook",
    "#cloud-config-archive",
    "#cloud-config-jsonp",
    CLOUD_CONFIG,
    "#include-once",
    "#include",
    "#part-handler",
    "## template: jinja",
    "#!",
)
"""What a text may begin with. Where one is the beginning of another, the longer one stands first."""
_MIME = "mime-version:"
_MIME_WITHIN = 4096

# Keys whose values are always lists, and keys whose values are always mappings, by
# schema-cloud-config-v1.json in cloud-init 25.1.
_LISTS = frozenset(
    (
        *("bootcmd", "cloud_config_modules", "cloud_final_modules", "cloud_init_modules", "fs_setup"),
        *("mount_default_fields", "mounts", "packages", "runcmd", "ssh_authorized_keys"),
        *("ssh_fp_console_blacklist", "ssh_genkeytypes", "ssh_import_id", "ssh_key_console_blacklist"),
        "write_files",
    )
)
_MAPPINGS = frozenset(
    (
        *("ansible", "apk_repos", "apt", "ca_certs", "chef", "chpasswd", "device_aliases", "disk_setup"),
        *("drivers", "growpart", "grub_dpkg", "keyboard", "landscape", "lxd", "mcollective", "output"),
        *("phone_home", "power_state", "puppet", "random_seed", "reporting", "resolv_conf"),
        *("rh_subscription", "salt_minion", "snap", "ssh", "ssh_keys", "ssh_publish_hostkeys"),
        *("swap", "ubuntu_pro", "updates", "yum_repos", "zypper"),
    )
)


def header_of(text: str) -> str | None:
    """Return the header by which cloud-init recognizes the kind of a text; None if it knows none."""
    begin = text.lstrip().lower()
    if _MIME in text[:_MIME_WITHIN].lower():
        return _MIME
    return next((header for header in _HEADERS if begin.startswith(header)), None)


def check_text(text: str, *, field: str) -> None:
    """Check a text of any kind.

    Raises:
        SpecError: cloud-init would ignore it, or it is a cloud-config that cannot work.
    """
    header = header_of(text)
    if header is None:
        first = text.strip().partition("\n")[0][:60]
        raise SpecError(
            f"{field}: cloud-init ignores a text that begins with {first!r}",
            resolution="begin with #cloud-config, #! and an interpreter, #include, #cloud-boothook, …: "
            "https://docs.cloud-init.io/en/latest/explanation/format.html",
        )
    if header == CLOUD_CONFIG:
        parse_cloud_config(text, field=field)


def parse_cloud_config(text: str, *, field: str) -> Mapping[str, Any]:
    """Return a cloud-config's content.

    Raises:
        SpecError: The text is no YAML, is no mapping, or a key has a value of a wrong type; the message
            has line and column where they are known.
    """
    import yaml  # noqa: PLC0415 - most specs have no such text

    class Loader(yaml.SafeLoader):
        def construct_object(self, node: yaml.Node, deep: bool = False) -> object:  # noqa: FBT001, FBT002 - as its base
            try:
                made: object = super().construct_object(node, deep)  # pyright: ignore[reportUnknownMemberType]
                return made
            except (ArithmeticError, AttributeError, LookupError, ValueError) as error:
                # PyYAML's constructors of numbers and dates do not say at which line they failed.
                raise yaml.MarkedYAMLError(problem=str(error), problem_mark=node.start_mark) from error

    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
        content: object = Loader(text).get_single_data()
    except (yaml.YAMLError, RecursionError) as error:
        raise SpecError(f"{field}: the cloud-config is no YAML{_at(error)}", details=str(error)) from None
    if content is None:
        return {}
    if not isinstance(content, Mapping):
        raise SpecError(
            f"{field}: the cloud-config is {_kind(content)}, a mapping is wanted",
            resolution="write one key a line: `packages: [nginx]`",
        )
    check_config(cast("Mapping[str, Any]", content), field=field, marks=_marks(root))
    return cast("Mapping[str, Any]", content)


def check_values(config: Mapping[str, Any], *, field: str) -> None:
    """Check that all values of a mapping can be written as YAML.

    Raises:
        SpecError: A value cannot be written, for instance a path or an object of the test.
    """
    import yaml  # noqa: PLC0415 - most specs have no such mapping

    try:
        yaml.safe_dump(dict(config))
    except yaml.representer.RepresenterError as error:
        raise SpecError(
            f"{field}: {error.args[-1]!r} cannot be written as YAML",
            resolution="give strings, numbers, lists and mappings, `str(path)` for a path",
        ) from None


def check_config(config: Mapping[str, Any], *, field: str, marks: Mapping[str, Mark] | None = None) -> None:
    """Check the types of a cloud-config's keys.

    Args:
        config: The cloud-config's content.
        field: The spec's field that holds it.
        marks: Line and column of each key's value, if the cloud-config was a text.

    Raises:
        SpecError: A key has a value of a type that cloud-init does not accept.
    """
    for names, wanted, fits in ((_LISTS, "a list", (list, tuple)), (_MAPPINGS, "a mapping", Mapping)):
        for name in sorted(names & config.keys()):
            if config[name] is not None and not isinstance(config[name], fits):
                where = _place((marks or {}).get(name))
                raise SpecError(
                    f"{field}: {name} is {_kind(config[name])}{where}, cloud-init wants {wanted}",
                    resolution="https://docs.cloud-init.io/en/latest/reference/modules.html has examples",
                )


def _marks(root: yaml.Node | None) -> dict[str, Mark]:
    pairs = cast("list[tuple[yaml.Node, yaml.Node]]", root.value if root else [])
    return {str(key.value): value.start_mark for key, value in pairs if value.start_mark is not None}


def _at(error: Exception) -> str:
    return _place(getattr(error, "problem_mark", None))


def _place(mark: Mark | None) -> str:
    return "" if mark is None else f" (line {mark.line + 1}, column {mark.column + 1})"


def _kind(value: object) -> str:
    if isinstance(value, Mapping):
        return "a mapping"
    if isinstance(value, (list, tuple)):
        return "a list"
    return f"the {'number' if isinstance(value, (int, float)) else 'text'} {value!r}"
