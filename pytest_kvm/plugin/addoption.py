"""Registers the options with pytest as flags and ini keys, and reads them."""

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
        # reported in the same way for each source.
        group.addoption(option.flag, dest=option.ini, metavar=option.metavar, default=None, help=text)
        parser.addini(option.ini, text, default=None)


def settings_of(config: pytest.Config) -> Settings:
    """Merge command line, environment and ini file; the first that has a value wins.

    Raises:
        pytest.UsageError: A value is not valid; the message names its source.
    """

    def command_line(option: Option) -> tuple[str, str | None]:
        return option.flag, config.getoption(option.ini)

    def ini(option: Option) -> tuple[str, str | None]:
        text: str | None = config.getini(option.ini)
        if text and option.is_path and not text.startswith("~"):
            # Resolved from the ini file's folder, as pytest resolves its own paths.
            folder = config.inipath.parent if config.inipath else config.invocation_params.dir
            text = str(folder / text)
        return f"ini key {option.ini}", text

    try:
        return settings_from([command_line, from_environment, ini])
    except SpecError as error:
        raise pytest.UsageError(str(error)) from None
