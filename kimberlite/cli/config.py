"""`kimberlite config`: the daemon's settings, and where each came from."""

from __future__ import annotations

import argparse
import json
from typing import Any

from kimberlite.cli.serve import add_settings, loaded


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_settings(parser)


def run(arguments: argparse.Namespace) -> int:
    settings = loaded(arguments).settings
    if arguments.json:
        print(json.dumps({each.name: {"value": each.value, "origin": each.origin} for each in settings}))
        return 0
    width = max(len(f"{each.name} = {shown(each.value)}") for each in settings)
    for each in settings:
        print(f"{f'{each.name} = {shown(each.value)}':{width}}  # {each.origin}")
    return 0


def shown(value: Any) -> str:
    """As the file has it."""
    return json.dumps(value) if value is not None else "none"
