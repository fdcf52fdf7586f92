"""What the documents say is what the code does: every command, flag, variable, exit code, number, name and link."""

from __future__ import annotations

import argparse
import inspect
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import pytest

import kimberlite
from kimberlite import arguments, config, errors
from kimberlite.cli import append, main, shells
from kimberlite.cli.config import shown
from kimberlite.crypto.master import CREDENTIAL
from kimberlite.log import options
from kimberlite.log.identity import QUANTUM
from kimberlite.log.options import MIB, Options
from kimberlite.storage import BLOCK, Choice
from kimberlite.storage.files import NETWORK

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
ARCHITECTURE = (ROOT / "ARCHITECTURE.md").read_text()
OPERATIONS = (ROOT / "docs" / "operations.md").read_text()
SECURITY = (ROOT / "docs" / "security.md").read_text()
DOCUMENTS = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").glob("*.md"))]
DESCRIBED = "\n".join([README, OPERATIONS, SECURITY])


def section(text: str, title: str) -> str:
    """From a heading to the next one."""
    return re.split(rf"^## {re.escape(title)}$", text, flags=re.M)[1].partition("\n## ")[0]


def rows(text: str) -> Iterator[list[str]]:
    """The cells of its tables, without their heads."""
    lines = [line for line in text.splitlines() if line.startswith("|")]
    for line, following in zip(lines, [*lines[1:], ""], strict=True):
        if not line.startswith("|--") and not following.startswith("|--"):
            yield [cell.strip() for cell in line.split("|")[1:-1]]


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", text, flags=re.M | re.S)


def flags() -> dict[str, set[str]]:
    """Each flag, and the commands that have it."""
    found: dict[str, set[str]] = {}
    for name, module in main.COMMANDS.items():
        parser = argparse.ArgumentParser(add_help=False)
        module.add_arguments(parser)
        for action in parser._actions:
            for flag in action.option_strings:
                found.setdefault(flag, set()).add(name)
    return found


def variables(title: str) -> set[str]:
    """Of the environment, named in a section."""
    return set(re.findall(r"`([A-Z]+_[A-Z_]+)`", section(OPERATIONS, title)))


# ---- commands


def test_every_command_is_described_and_no_other() -> None:
    described = re.findall(r"`kimberlite ([a-z-]+)", section(OPERATIONS, "Commands"))
    assert set(described) == main.COMMANDS.keys()
    assert set(re.findall(r"(?:`|\n|\| )kimberlite ([a-z-]+) ", DESCRIBED)) <= main.COMMANDS.keys()


def test_every_flag_is_described_with_its_commands() -> None:
    described: dict[str, set[str]] = {}
    for cells in rows(section(OPERATIONS, "Commands")):
        for flag in re.findall(r"`(--?[a-z-]+)`", cells[0]):
            described[flag] = set(re.findall(r"`([a-z-]+)`", cells[1])) or {cells[1]}
    assert described.pop("--json") == {"all"}
    assert described == flags()


def test_no_flag_is_mentioned_that_is_not_there() -> None:
    mentioned = set(re.findall(r"(?<![-\w])--[a-z][a-z-]*", DESCRIBED))
    of_pip = {"--quiet"}
    assert mentioned - of_pip == {flag for flag in flags() if flag.startswith("--")} | {"--json"}


def test_every_shell_is_described_with_what_it_is_told() -> None:
    table = section(OPERATIONS, "Commands").partition("\n### Completion\n")[2]
    described = {shell: re.findall(r"`kimberlite completion (\w+) > ", told) for shell, told in rows(table)}
    assert described == {shell: [shell] for shell in shells.SCRIPTS}


def test_every_setting_of_the_daemon_is_described_with_its_default() -> None:
    table = section(OPERATIONS, "The daemon").partition("\n### ")[0]
    described = {cells[0].strip("`"): cells[1].strip("`") for cells in rows(table)}
    settings = config.load(None, {}, {}, []).settings
    assert described == {each.name: shown(each.value) for each in settings}


def test_every_environment_variable_is_read() -> None:
    source = "\n".join(path.read_text() for path in (ROOT / "kimberlite").rglob("*.py"))
    read = set(re.findall(r"environ(?:\.get\(|\[)\"([A-Z_]+)\"", source))
    assert variables("Keys") | variables("Commands") | {"TERM"} == read
    assert "`TERM`" in section(OPERATIONS, "Commands")
    assert f"`{CREDENTIAL}`" in OPERATIONS


def test_the_batches_of_append_are_as_long_as_it_says() -> None:
    assert f"at most {append.BATCH_RECORDS:,} records" in OPERATIONS


# ---- errors


def all_errors(kind: type[errors.KimberliteError] = errors.KimberliteError) -> Iterator[type[errors.KimberliteError]]:
    for child in kind.__subclasses__():
        yield child
        yield from all_errors(child)


def test_every_error_has_its_exit_code_in_the_table() -> None:
    table = {(int(status), code) for status, code, _ in rows(section(OPERATIONS, "Exit codes"))}
    expected = {(error.exit_code, error.code) for error in all_errors()}
    assert table == expected | {(0, ""), (main.INTERRUPTED, ""), (main.BROKEN_PIPE, "")}


def test_every_code_that_is_mentioned_is_one() -> None:
    codes = {error.code for error in all_errors()}
    mentioned = re.findall(r"\b(?:[A-Z]+_[A-Z_]+|BUSY|CORRUPT|CONFLICT|DUPLICATE|CLOSED|INVALID)\b", DESCRIBED)
    others = variables("Keys") | variables("The daemon") | variables("Commands")
    assert set(mentioned) - others <= codes | {"O_DIRECT", "O_DSYNC"}


def test_the_tree_of_errors_is_drawn_as_it_is() -> None:
    drawn = set(re.findall(r"[├└]── (\w+) +([A-Z_]+)", errors.__doc__ or ""))
    assert drawn == {(error.__name__, error.code) for error in all_errors()}


def test_exit_codes_in_the_tables_of_attacks_are_errors_of_ours() -> None:
    mentioned = {int(n) for n in re.findall(r"\b(\d\d)\b(?=[,:;| ])", section(SECURITY, "Who holds the disk"))}
    assert mentioned <= {error.exit_code for error in all_errors()}
    assert {65, 77, 78, 79} <= mentioned


# ---- numbers


def test_options_and_their_defaults() -> None:
    table = {cells[0].strip("`"): cells[1] for cells in rows(section(OPERATIONS, "Limits")) if cells[0].startswith("`")}
    parameters = dict(inspect.signature(kimberlite.open).parameters)
    del parameters["path"]
    assert table.keys() == parameters.keys()
    for name, parameter in parameters.items():
        text = table[name].strip("`")
        value = int(text.split()[0]) * MIB if text.endswith(" MiB") else eval(text)
        assert value == parameter.default, name
        if name in Options.__dataclass_fields__:
            assert getattr(Options(), name) == parameter.default


@pytest.mark.parametrize(
    ("fits", "does_not"),
    [
        ({"segment_bytes": 64 << 10}, {"segment_bytes": (64 << 10) - BLOCK}),
        ({"segment_bytes": 2 << 30}, {"segment_bytes": (2 << 30) + BLOCK}),
        ({"compression": -7}, {"compression": -8}),
        ({"compression": 19}, {"compression": 20}),
        ({"depth": 1}, {"depth": 0}),
        ({"depth": 8}, {"depth": 9}),
        ({"max_delay": 1.0}, {"max_delay": 1.1}),
        ({"pack": 1.0}, {"pack": 1.1}),
        ({"scrub": 0}, {"scrub": -1}),
    ],
)
def test_the_ranges_of_options(fits: dict[str, float], does_not: dict[str, float]) -> None:
    Options(**fits)  # type: ignore[arg-type]
    with pytest.raises(kimberlite.Invalid):
        Options(**does_not)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "text",
    [
        f"| records in a batch | {options.LARGEST_BATCH:,} |",
        f"| bytes of a batch, as stored | {options.LARGEST_BATCH_BYTES // MIB} MiB,",
        f"| a stream's name | {arguments.LONGEST_NAME} bytes of UTF-8,",
        f"| a producer's id | {arguments.LONGEST_PRODUCER} bytes |",
        "from 64 KiB to 2 GiB;",
        "a zstd level, from -7 to 19;",
        "1 to 8 |",
        f"{Options().pool_bytes // MIB} MiB of appends wait",
        f"{Options().cache_bytes // MIB} MiB of opened runs",
        f"{Options().idle * 1000:.0f} ms without work",
        f"after {Options().checkpoint_records:,} records or {Options().checkpoint_bytes // MIB} MiB",
    ],
)
def test_limits(text: str) -> None:
    assert text in section(OPERATIONS, "Limits").replace("\n", " ")


def test_what_is_remembered_of_producers() -> None:
    source = (ROOT / "native" / "core" / "src" / "producers" / "mod.rs").read_text()
    [found] = re.findall(r"producers: ([\d_]+), bytes: (\d+) << 20, remembered: (\d+), idle: (\d+) \* DAY", source)
    producers, mib, remembered, days = (int(number.replace("_", "")) for number in found)
    text = section(OPERATIONS, "Limits").replace("\n", " ")
    assert f"the last {remembered:,} batches" in text
    assert f"{producers:,} producers within {mib} MiB" in text
    assert f"after {days} days" in text


def test_the_padding_and_the_block() -> None:
    assert f"padded to {QUANTUM} bytes" in SECURITY
    assert f"whole blocks of {BLOCK:,} bytes" in ARCHITECTURE


def test_policies_and_backends() -> None:
    policies = [cells[0].strip("`").split("`")[0] for cells in rows(section(OPERATIONS, "Who waits for which sync"))]
    assert sorted(policies) == sorted(arguments.POLICIES)
    backends = {cells[0].strip("`") for cells in rows(section(OPERATIONS, "Backends"))}
    assert backends | {"auto"} == set(get_args(Choice))


def test_the_network_file_systems_that_are_refused() -> None:
    [names] = re.findall(r"A path on ([\w, ]+?) is refused", OPERATIONS)
    assert set(re.split(r", | or ", names)) == {name.removesuffix("2") for name in NETWORK.values()}


# ---- names and links


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_somewhere(document: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", document.read_text()):
        assert "://" not in target, "a document must be readable without a network"
        assert (document.parent / target).exists(), target


def test_the_parts_that_the_architecture_names_are_there() -> None:
    names = [name for cells in rows(section(ARCHITECTURE, "Layers")) for name in re.findall(r"`([\w/.]+)`", cells[0])]
    folder = ""
    assert len(names) > 20
    for name in names:
        folder = name.rpartition("/")[0] or folder
        path = name if "/" in name else f"{folder}/{name}"
        assert (
            (ROOT / path).exists()
            or (ROOT / "kimberlite" / path).exists()
            or (ROOT / "native" / "core" / "src" / name).exists()
        ), name


def test_recipes_that_are_named_exist_and_run_what_exists() -> None:
    justfile = (ROOT / "justfile").read_text()
    recipes = set(re.findall(r"^([a-z][a-z-]*)(?: [^:\n]*)?:(?!=)", justfile, flags=re.M))
    named = {name for document in DOCUMENTS for name in re.findall(r"`just ([a-z-]+)", document.read_text())}
    assert named <= recipes
    assert {"setup", "check", "test", "bench", "crash", "fmt", "demo"} <= recipes
    for module in re.findall(r"python -m ((?:benches|tests)[\w.]+)", justfile):
        assert (ROOT / f"{module.replace('.', '/')}.py").exists(), module


# ---- the README


def test_there_are_two_commands_and_ci_runs_the_second() -> None:
    commands = blocks(README, "sh")
    assert [len(command.splitlines()) for command in commands] == [1, 1]
    assert commands[0].rstrip().endswith("kimberlite demo")
    ci = ROOT / ".ci" / "run"
    assert os.access(ci, os.X_OK)
    [extract] = re.findall(r"command=\$\((.*)\)$", ci.read_text(), flags=re.M)
    found = subprocess.run(["bash", "-c", extract], cwd=ROOT, capture_output=True, text=True, check=True)
    assert found.stdout == commands[1]


def test_the_example_runs_and_is_short(tmp_path: Path) -> None:
    [example] = blocks(README, "python")
    assert sum(map(bool, example.splitlines())) <= 10
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-W", "error", "-P", "-c", example]
    done = subprocess.run(
        command, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False, env=environment
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines()[1:] == ["""0 b'{"id": 1}'""", """1 b'{"id": 2}'"""]


def test_the_readme_has_one_sentence_first_and_no_pictures_from_elsewhere() -> None:
    first = README.split("\n\n")[1]
    assert first.count(".") == 1
    assert first.endswith(".")
    assert "](http" not in README
    assert "<img" not in README


def test_the_licence_is_the_one_that_is_declared() -> None:
    licence = (ROOT / "LICENSE").read_text()
    assert "Apache License" in licence
    assert "END OF TERMS AND CONDITIONS" in licence
    assert 'license = "Apache-2.0"' in (ROOT / "pyproject.toml").read_text()
