"""``pytest-kvm``: the command line, for work outside a test run."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from pytest_kvm.cli import cache, doctor, gc, images, ps, resume
from pytest_kvm.errors import KvmError
from pytest_kvm.options import OPTIONS, Option, from_environment, settings_from


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code.

    Returns:
        0 done, 1 failed, 2 misused, 130 interrupted, 141 nobody reads what it prints any more.
    """
    arguments = parser().parse_args(argv)
    try:
        settings = settings_from([lambda option: _flag_and_value(arguments, option), from_environment])
        exit_code = int(arguments.handler(arguments, settings))
        sys.stdout.flush()
        return exit_code
    except KvmError as error:
        sys.stderr.write(f"pytest-kvm: {error}\n")
        return 1
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # What is left in the buffer would fail again when Python exits.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except OSError as error:  # a folder that belongs to somebody else, a full disk
        sys.stderr.write(f"pytest-kvm: {error}\n")
        return 1


def parser() -> argparse.ArgumentParser:
    """Return the parser of all commands."""
    made = argparse.ArgumentParser(
        prog="pytest-kvm", description="Guests, images, templates and checks of pytest-kvm."
    )
    for option in OPTIONS:
        if option.name in _WANTED:
            help_text = f"{option.help} (default: {option.default}; environment {option.variable})"
            made.add_argument(option.flag, dest=option.ini, metavar=option.metavar, help=help_text)
    commands = made.add_subparsers(title="commands", metavar="COMMAND", required=True)
    images.add_parser(commands)
    cache.add_parser(commands)
    doctor.add_parser(commands)
    ps.add_parser(commands)
    gc.add_parser(commands)
    resume.add_parser(commands)
    return made


_WANTED = ("uri", "accel", "cache_dir", "run_dir", "events")
"""Options that apply to commands, without a test run."""


def _flag_and_value(arguments: argparse.Namespace, option: Option) -> tuple[str, str | None]:
    return option.flag, getattr(arguments, option.ini, None)
