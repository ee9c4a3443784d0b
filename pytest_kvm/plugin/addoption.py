"""pytest's side of the options: flags and ini keys."""

from __future__ import annotations

import pytest

from pytest_kvm.errors import SpecError
from pytest_kvm.options import OPTIONS, Option, from_environment, settings_from
from pytest_kvm.settings import Settings


def add_options(parser: pytest.Parser) -> None:
    """Register every option and ini key."""
    group = parser.getgroup("kvm", "guests (pytest-kvm)")
    for option in OPTIONS:
        text = f"{option.help} (default: {option.default}; environment {option.variable}, ini {option.ini})"
        # Values stay text until all sources are merged, so that a mistake is
        # told the same way wherever it stands.
        group.addoption(option.flag, dest=option.ini, metavar=option.metavar, default=None, help=text)
        parser.addini(option.ini, text, default=None)


def settings_of(config: pytest.Config) -> Settings:
    """Merge command line, environment and ini, in this order.

    Raises:
        pytest.UsageError: A value cannot be meant; the message names its source.
    """

    def command_line(option: Option) -> tuple[str, str | None]:
        return option.flag, config.getoption(option.ini)

    def ini(option: Option) -> tuple[str, str | None]:
        text: str | None = config.getini(option.ini)
        if text and option.is_path and not text.startswith("~"):
            # As pytest does with its own: from the folder of the ini file.
            folder = config.inipath.parent if config.inipath else config.invocation_params.dir
            text = str(folder / text)
        return f"ini key {option.ini}", text

    try:
        return settings_from([command_line, from_environment, ini])
    except SpecError as error:
        raise pytest.UsageError(str(error)) from None
