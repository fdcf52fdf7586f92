"""How throughput and latency change with clients and batches, over loopback, beside the raw disk in the same minutes.

Every cell is done as `benches.network` does its own: a fresh database and daemon, native clients on the same cores.
"""

from __future__ import annotations

import argparse
import tempfile
from itertools import product
from pathlib import Path
from typing import Final

from benches.network import measure
from benches.network_tables import SIZE, Cell, Outcome
from benches.table import Table, asked, machine, publish

CLIENTS: Final = (1, 4, 16, 64)
BATCHES: Final = (1, 10, 100, 1_000)


def table(found: list[Outcome]) -> Table:
    rows = tuple(
        (
            f"{each.cell.clients} × {each.cell.batch}",
            f"{each.records_per_s:,.0f}",
            f"{each.low:,.0f} to {each.high:,.0f}",
            f"{each.p50_ms:.3f}",
            f"{each.p99_ms:.3f}",
            f"{each.best:,.0f}",
            f"{each.plain:,.0f}",
        )
        for each in found
    )
    headings = ("clients × batch", "records/s", "rounds", "p50 ms", "p99 ms", "raw best/s", "raw plain/s")
    return Table(f"Appends of {SIZE}-byte records over loopback, one in flight a client", headings, rows)


def arguments() -> argparse.ArgumentParser:
    parser = asked("sweep", __doc__)
    parser.add_argument("--clients", type=int, nargs="+", default=CLIENTS)
    parser.add_argument("--batches", type=int, nargs="+", default=BATCHES)
    parser.add_argument("--seconds", type=float, default=1.0, help="of load, for each cell of a round")
    parser.add_argument("--rounds", type=int, default=3)
    return parser


def main() -> None:
    options = arguments().parse_args()
    cells = [Cell(clients, 1, batch) for clients, batch in product(options.clients, options.batches)]
    with tempfile.TemporaryDirectory(prefix="bench-", dir=options.directory) as name:
        found, _ = measure(Path(name), cells, [], options.seconds, options.rounds)
        where = machine(Path(name))
    publish(where, [table(found)], {"sweep": found}, options)


if __name__ == "__main__":
    main()
