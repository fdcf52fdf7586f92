"""`kimberlite`: the commands and what they end with."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from types import ModuleType
from typing import Final, NoReturn

from kimberlite.cli import (
    append,
    bench,
    completion,
    config,
    demo,
    erase,
    export,
    importing,
    info,
    inspect,
    install_service,
    keys,
    read,
    repair,
    retain,
    salvage,
    serve,
    streams,
    tail,
    terminal,
    top,
    verify,
)
from kimberlite.errors import Invalid, KimberliteError, Unavailable

COMMANDS: Final[dict[str, ModuleType]] = {
    "serve": serve,
    "config": config,
    "install-service": install_service,
    "append": append,
    "read": read,
    "tail": tail,
    "streams": streams,
    "info": info,
    "verify": verify,
    "retain": retain,
    "erase": erase,
    "export": export,
    "import": importing,
    "bench": bench,
    "top": top,
    "inspect": inspect,
    "salvage": salvage,
    "repair": repair,
    "keys": keys,
    "completion": completion,
    "demo": demo,
}
#: What a shell shows for a command that a signal ended.
INTERRUPTED: Final = 130
BROKEN_PIPE: Final = 141


class Parser(argparse.ArgumentParser):
    """Says what is wrong with a call as every other error is said."""

    def error(self, message: str) -> NoReturn:
        raise Invalid(f"{message} (see {self.prog} --help)")


def parser() -> Parser:
    top = Parser(prog="kimberlite", description="An append-only log database that can be verified.", allow_abbrev=False)
    top.add_argument("--version", action="version", version=f"kimberlite {installed()}")
    commands = top.add_subparsers(metavar="COMMAND", required=True)
    for name, module in COMMANDS.items():
        summary = (module.__doc__ or "").partition("\n")[0]
        summary = summary.partition(": ")[2]
        command = commands.add_parser(name, help=summary, description=summary, allow_abbrev=False)
        module.add_arguments(command)
        command.add_argument("--json", action="store_true", help="JSON on stdout, and errors as JSON on stderr")
        command.set_defaults(run=module.run)
    return top


def installed() -> str:
    try:
        return version("kimberlite")
    except PackageNotFoundError:
        return "(not installed)"


def main(arguments: Sequence[str] | None = None) -> int:
    given = list(sys.argv[1:] if arguments is None else arguments)
    as_json = "--json" in given
    occupy()
    try:
        if sys.stdout is None:
            raise Unavailable("stdout is closed")
        parsed = parser().parse_args(given)
        status: int = parsed.run(parsed)
        sys.stdout.flush()
    except KimberliteError as error:
        terminal.complain(error, as_json=as_json)
        return error.exit_code
    except BrokenPipeError:
        muffle()
        return BROKEN_PIPE
    except OSError as error:
        muffle()
        failed = Unavailable(f"input or output: {error.strerror}")
        terminal.complain(failed, as_json=as_json)
        return failed.exit_code
    except KeyboardInterrupt:
        return INTERRUPTED
    return status


def occupy() -> None:
    """A database's file must not get the number of a standard stream that is closed: what is said there would go into
    it."""
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)


def muffle() -> None:
    """The interpreter flushes stdout once more when it ends, and would complain."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


if __name__ == "__main__":
    sys.exit(main())
