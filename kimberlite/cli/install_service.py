"""install-service: write the units of systemd, its users and directories, and a file of settings to fill in."""

from __future__ import annotations

import argparse
import os
import shutil
from importlib.resources import files
from pathlib import Path
from typing import Final

from kimberlite.cli import forms
from kimberlite.cli.terminal import say
from kimberlite.errors import Misconfigured

#: Each file, and where it belongs.
PLACES: Final = {
    "kimberlite.service": "etc/systemd/system/kimberlite.service",
    "kimberlite.socket": "etc/systemd/system/kimberlite.socket",
    "sysusers.conf": "etc/sysusers.d/kimberlite.conf",
    "tmpfiles.conf": "etc/tmpfiles.d/kimberlite.conf",
    "kimberlite.toml": "etc/kimberlite/kimberlite.toml",
}
#: What the unit starts, as it is written there.
COMMAND: Final = "/usr/bin/kimberlite"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--root", metavar="DIR", default="/", help="write beneath DIR and not /")
    parser.add_argument("--exec", metavar="PATH", help="the kimberlite command; else that which is found in PATH")
    parser.add_argument("--force", action="store_true", help="replace files that say something else")


def run(arguments: argparse.Namespace) -> int:
    command = os.path.abspath(arguments.exec or shutil.which("kimberlite") or COMMAND)
    if not os.access(command, os.X_OK):
        raise Misconfigured(f"{command} cannot be started: --exec says where the command is")
    root = Path(arguments.root)
    written = {root / place: text_of(name).replace(COMMAND, command) for name, place in PLACES.items()}
    for path, text in written.items():
        if not arguments.force and path.exists() and path.read_text() != text:
            raise Misconfigured(f"{path} says something else: --force replaces it")
    for path, text in written.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        say(forms.line({"wrote": str(path)}) if arguments.json else f"wrote {path}")
    if not arguments.json:
        say("now: systemd-sysusers && systemd-tmpfiles --create && systemctl daemon-reload")
        say("then: systemctl enable --now kimberlite.socket kimberlite.service")
    return 0


def text_of(name: str) -> str:
    return (files("kimberlite") / "deploy" / name).read_text()
