"""What the system is meant to reach, row by row, with what it reached: from the results of one run of all benches.

`python -m benches.rows results/bench.json` prints the table; `--into FILE` puts it in the place of the one that is
there, between its two marks.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from benches.engine import AIM_ALONE, AIM_ENCRYPTED, AIM_WITHOUT_SYNC, AIMS
from benches.table import Table
from benches.upkeep import AIM_P99, AIM_RATE, EVERYTHING, NOTHING, done

BEGIN, END = "<!-- rows: made by python -m benches.rows -->", "<!-- end of rows -->"
#: Clients, batches in flight of each, records of a batch.
SHAPES: Final = {
    (1, 1, 100): "batches of 100, 1 client, one in flight",
    (1, 8, 100): "the same, 8 in flight",
    (32, 1, 100): "batches of 100, 32 clients",
    (64, 1, 1): "single records, 64 clients, one in flight each",
    (64, 16, 1): "single records, 64 clients, 16 in flight each",
}
#: Bytes of a record of a closed segment's index, and the share of the hash's speed that verifying reaches.
AIM_INDEX: Final = 2.0
AIM_VERIFY: Final = 0.8
#: Microseconds.
AIM_GET: Final = {"p50": 2.0, "p99": 20.0}
AIM_START: Final = 1.0
AIM_STORED: Final = 0.1


@dataclass(frozen=True, slots=True)
class Row:
    work: str
    aim: str
    figure: str
    beside: str
    #: 1 is there, and more is better; None where a word says it.
    reached: float | None


def rows(benches: Mapping[str, Any]) -> Iterator[Row]:
    """Of the benches that were done."""
    for name, made in (
        ("network", network),
        ("engine", embedded),
        ("sizes", sizes),
        ("reads", reads),
        ("upkeep", upkeep),
    ):
        # A run of before may not have it.
        if isinstance(benches.get(name), dict):
            yield from made(benches[name])
    if isinstance(benches["startup"], dict):
        [start] = benches["startup"]["startup"]
        figure, beside = f"{start['median_s']:.2f} s", f"{start['import_s']:.2f} s only to start Python"
        yield Row(f"start after a kill, {start['log']}", "< 1 s", figure, beside, AIM_START / start["median_s"])
    if isinstance(benches["targets"], dict):
        for each in benches["targets"]["targets"]:
            if each["unit"] == "GB/s" and each["aim"] is not None:
                beside = f"{each['beside']:.3g}: {each['meaning']}"
                figure = f"{each['figure']:.3g} GB/s"
                yield Row(each["work"], f"≥ {each['aim']:g} GB/s", figure, beside, each["figure"] / each["aim"])


def network(found: Mapping[str, Any]) -> Iterator[Row]:
    outcomes = {(*shape(each["cell"]), each["cell"]["mode"]): each for each in found["append"]}
    alone = outcomes[1, 1, 1, "plain"]
    aim, beside = AIM_ALONE * alone["best_p50_ms"], f"best raw write {alone['best_p50_ms']:.3f} ms"
    fastest = min(servers(found, (1, 1, 1)), key=lambda peer: peer["figures"]["p50_ms"], default=None)
    if fastest is not None:
        beside += f"; {fastest['name']} {fastest['figures']['p50_ms']:.3f} ms"
    reached = aim / alone["p50_ms"]
    yield Row("single records, 1 client: p50", f"≤ {aim:.3f} ms", f"{alone['p50_ms']:.3f} ms", beside, reached)
    for cell, words in SHAPES.items():
        each, wanted = outcomes[*cell, "plain"], AIMS[cell]
        disk = f"raw disk, one such batch a sync: plain {each['plain']:,.0f}, best {each['best']:,.0f}"
        beside = f"{disk}; only answered: {each['sockets']:,.0f}"
        best = max(servers(found, cell), key=lambda peer: peer["figures"]["records_per_s"], default=None)
        if best is not None:
            beside += f"; {best['name']}: {best['figures']['records_per_s']:,.0f}"
        rate = each["records_per_s"]
        yield Row(words, f"≥ {wanted:,}/s", f"{rate:,.0f}/s", beside, rate / wanted)
    for cell, words in {(1, 1, 1): "single records, 1 client", **SHAPES}.items():
        if (*cell, "encrypted") in outcomes:
            plain, rate = (outcomes[*cell, mode]["records_per_s"] for mode in ("plain", "encrypted"))
            aim = f"≥ {AIM_ENCRYPTED:g} × not encrypted"
            yield Row(f"encrypted: {words}", aim, f"{rate:,.0f}/s", f"{plain:,.0f}/s", rate / plain / AIM_ENCRYPTED)
    if (32, 1, 100, "json+zstd") in outcomes:
        plain, rate = (outcomes[32, 1, 100, mode]["records_per_s"] for mode in ("plain", "json+zstd"))
        yield Row(
            "JSON that compresses, 32 clients", "≥ random bytes", f"{rate:,.0f}/s", f"{plain:,.0f}/s", rate / plain
        )
    for each in found["read"]:
        rate, wanted = each["records_per_s"], each["aim"]
        beside = f"{each['carried']:,.0f}/s: as many bytes over the same loopback"
        yield Row(f"read in order, {each['kind']}", f"≥ {wanted:,}/s", f"{rate:,.0f}/s", beside, rate / wanted)


def servers(found: Mapping[str, Any], wanted: tuple[int, int, int]) -> list[Mapping[str, Any]]:
    """Peers that are asked over a socket at the same work, if there were any."""
    return [peer for peer in found["peers"] if shape(peer["cell"]) == wanted and "embedded" not in peer["name"]]


def shape(cell: Mapping[str, Any]) -> tuple[int, int, int]:
    return cell["clients"], cell["depth"], cell["batch"]


def embedded(found: Mapping[str, Any]) -> Iterator[Row]:
    [hashes] = found["hashes"]
    for each in found["append"]:
        cell = each["cell"]
        rate = each["records_per_s"]
        if cell["sync"] == "os":
            words, limit = f"embedded, not synced, batches of 100, {cell['mode']}", hashes["records_per_s"]
            beside = f"{limit:,.0f}/s: its hashes, on all cores"
            yield Row(words, f"≥ {AIM_WITHOUT_SYNC:,}/s", f"{rate:,.0f}/s", beside, rate / AIM_WITHOUT_SYNC)
        if cell["mode"] == "json+zstd":
            stored = each["stored"]
            words = "JSON that compresses: stored for a byte"
            yield Row(words, f"≤ {AIM_STORED:g}", f"{stored:.3f}", "embedded, 32 clients", AIM_STORED / stored)


def sizes(found: Mapping[str, Any]) -> Iterator[Row]:
    least, most = found["sizes"][0], found["sizes"][-1]
    for quantile, aim in AIM_GET.items():
        small, large = (each[f"get_{quantile}_ns"] / 1e3 for each in (least, most))
        words = f"read by position, {most['records']:,} records, anywhere: {quantile}"
        beside = f"{small:.1f} µs with {least['records']:,}"
        yield Row(words, f"< {aim:g} µs, warm", f"{large:.1f} µs", beside, aim / large)
    grown = (most["read_bytes"] - least["read_bytes"]) / most["records"]
    words = f"memory, {most['records']:,} records, opened and read"
    beside = f"{least['read_bytes'] / 1e6:.0f} MB with {least['records']:,}"
    reached = AIM_INDEX / grown if grown > 0 else None
    yield Row(words, "≤ 2 bytes a record", f"{grown:.2f} bytes a record", beside, reached)


def reads(found: Mapping[str, Any]) -> Iterator[Row]:
    for each in found["reads"]:
        if each["work"].startswith("get, in the cache") and each["mode"] == "plain":
            quantile = each["work"].rpartition(" ")[2]
            aim, beside = AIM_GET[quantile], f"{each['limit']:.1f} µs: {each['meaning']}"
            words, figure = f"read by position, in the cache: {quantile}", f"{each['value']:.1f} µs"
            yield Row(words, f"< {aim:g} µs", figure, beside, aim / each["value"])
        if each["work"] == "verify":
            share = each["value"] / each["limit"]
            words, figure = f"verify, {each['mode']}", f"{each['value']:,.0f}/s"
            beside = f"{each['limit']:,.0f}/s: {each['meaning']}"
            # What is above its limit was held against something else than a limit.
            reached = share / AIM_VERIFY if share <= 1 else None
            yield Row(words, f"≥ {AIM_VERIFY:g} × the hash's speed", figure, beside, reached)


def upkeep(found: Mapping[str, Any]) -> Iterator[Row]:
    outcomes = {(each["cell"]["clients"], each["cell"]["batch"], each["upkeep"]): each for each in found["upkeep"]}
    for clients, batch, work in outcomes:
        if work != EVERYTHING:
            continue
        without, all_of_it = (outcomes[clients, batch, each] for each in (NOTHING, EVERYTHING))
        who = "1 client" if clients == 1 else f"{clients} clients"
        words = f"{who}, batches of {batch}, while {done(all_of_it)}"
        figure, beside = (f"{each['records_per_s']:,.0f}/s" for each in (all_of_it, without))
        yield Row(words, f"≥ {AIM_RATE:g} × without", figure, beside, all_of_it["rate"] / AIM_RATE)
        figure, beside = (f"{each['p99_ns'] / 1e6:.2f} ms" for each in (all_of_it, without))
        yield Row(f"{words}: p99", f"≤ {AIM_P99:g} × without", figure, beside, AIM_P99 / all_of_it["p99"])


def table(results: Mapping[str, Any]) -> Table:
    found = [
        (each.work, each.aim, each.figure, each.beside, "" if each.reached is None else f"{each.reached:.2f}")
        for each in rows(results["benches"])
    ]
    title = f"{results['machine']}; commit {results['commit']}, {results['when']}"
    return Table(title, ("work", "aim", "figure", "beside it, in the same run", "reached"), tuple(found))


def put_into(path: Path, text: str) -> None:
    before, begin, rest = path.read_text(encoding="utf-8").partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        sys.exit(f"{path} has no place for it: {BEGIN} … {END}")
    path.write_text(f"{before}{BEGIN}\n\n{text}\n\n{END}{after}", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benches.rows", description=__doc__)
    parser.add_argument("results", type=Path, help="what python -m benches wrote")
    parser.add_argument("--into", type=Path, metavar="FILE")
    options = parser.parse_args()
    text = table(json.loads(options.results.read_text(encoding="utf-8"))).markdown()
    if options.into:
        put_into(options.into, text)
    else:
        print(text)


if __name__ == "__main__":
    main()
