"""repair: make a damaged database writable again, without what is behind the damage.

Without `--accept-loss` it shows what would be given up, and changes nothing.
"""

from __future__ import annotations

import argparse
import asyncio
import signal
import sys
from typing import Any

from kimberlite.cli import forms
from kimberlite.cli.target import add_key_file, directory
from kimberlite.cli.terminal import escaped, note, say, table
from kimberlite.errors import Corrupt, Invalid
from kimberlite.log.description import ranged
from kimberlite.log.names import QUARANTINE, segment_name
from kimberlite.log.repair import Loss, repair_directory


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("target", metavar="DIR", help="the database's directory")
    parser.add_argument("--accept-loss", action="store_true", help="do it, after asking")
    parser.add_argument("--yes", action="store_true", help="do not ask")
    add_key_file(parser)


def run(arguments: argparse.Namespace) -> int:
    path = directory(arguments.target)
    if not path.is_dir():
        raise Invalid(f"there is no database at {path}")
    if arguments.accept_loss and not arguments.yes and (sys.stdin is None or not sys.stdin.isatty()):
        raise Invalid("nobody can be asked here: --yes says that the loss is accepted")
    if arguments.accept_loss and not arguments.yes and arguments.json:
        raise Invalid("with --json nobody is asked: --yes says that the loss is accepted")
    done = False

    def agree(loss: Loss) -> bool:
        nonlocal done
        show(loss, as_json=arguments.json)
        done = arguments.accept_loss and (arguments.yes or asked())
        return done

    loss = asyncio.run(repair_directory(path, agree, key_file=arguments.key_file))
    if loss is None:
        say(forms.line({"damaged": False}) if arguments.json else "nothing is wrong, and nothing was changed")
        return 0
    plan, quarantine = loss.plan, path / QUARANTINE
    if not done:
        name, group = segment_name(plan.segment), plan.group + 1
        what = "nothing was changed: --accept-loss gives up what is behind"
        raise Corrupt(what, file=name, place=plan.place, group=group, position=plan.position)
    said = {"repaired": True, "incarnation": plan.after, "quarantine": str(quarantine)}
    told = f"it is done: incarnation {plan.after}; what was given up is in {quarantine}"
    note(forms.line(said) if arguments.json else told)
    return 0


def form(loss: Loss) -> dict[str, Any]:
    plan = loss.plan
    return {
        "damaged": True,
        "why": loss.why,
        "kept_groups": plan.group,
        "kept_records": plan.position,
        "lost_groups": loss.groups,
        "lost_positions": [plan.position, plan.end],
        "unknown_groups": loss.unknown and list(loss.unknown),
        "salvageable_records": loss.records,
        "segment": plan.segment,
        "place": plan.place,
        "segments_to_quarantine": loss.files,
        "incarnation": plan.after,
    }


def show(loss: Loss, *, as_json: bool) -> None:
    if as_json:
        say(forms.line(form(loss)))
        return
    rows = form(loss) | {"lost_positions": ranged(loss.plan.position, loss.plan.end)}
    del rows["damaged"], rows["unknown_groups"]
    say(table({name: escaped(str(value)) for name, value in rows.items()}))
    if loss.unknown is not None:
        first, last = loss.unknown
        say(f"note: groups {first} to {last}, positions unknown: they were durable, and only their numbers are known")
    if loss.records:
        what = f"{loss.records} records behind the damage are sound"
        say(f"note: {what}: `kimberlite salvage` saves them, a repair gives them up")


def asked() -> bool:
    # An event loop only notes an interruption, and would go on with whatever is said behind it.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        sys.stderr.write("Give this up? Only `yes` does it: ")
        sys.stderr.flush()
        return sys.stdin.readline().strip() == "yes"
    finally:
        signal.signal(signal.SIGINT, before)
