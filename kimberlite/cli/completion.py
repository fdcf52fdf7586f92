"""completion: print a script that completes `kimberlite` in a shell; it works without Python."""

from __future__ import annotations

import argparse

from kimberlite.cli import forms
from kimberlite.cli.terminal import say


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("shell", choices=["bash", "zsh", "fish"])


def run(arguments: argparse.Namespace) -> int:
    # The one has this module in its table, and no other command needs the other one.
    from kimberlite.cli import main, shells

    script = shells.SCRIPTS[arguments.shell](main.parser())
    say(forms.line({"shell": arguments.shell, "script": script}) if arguments.json else script.encode())
    return 0
