"""What may import what, and where tests belong."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "kimberlite"
#: From the top; an import may only point down, and names on one line are strangers to each other.
LAYERS = [
    ["cli"],
    ["load", "config"],
    ["sync"],
    ["__init__"],
    ["api"],
    ["server", "client"],
    ["wire"],
    ["log"],
    ["storage", "crypto"],
    ["iterators", "producer", "importing"],
    ["arguments"],
    ["_native"],
    ["records"],
    ["errors"],
]
LEVEL = {name: level for level, line in enumerate(LAYERS) for name in line}
#: Not about one package: another implementation of the format, crashes and attacks of the whole, files, benches, what
#: holds of a directory and of a daemon.
ABOUT_THE_WHOLE = {"model", "crash", "attacks", "golden", "benches", "shared"}


def part_of(module: str) -> str:
    """The layer of a dotted name in the package."""
    names = module.split(".")
    return names[1] if len(names) > 1 else "__init__"


def imported(source: str) -> Iterator[str]:
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.split(".")[0] == "kimberlite")
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            if node.module == "kimberlite":
                yield from (f"kimberlite.{a.name}" if a.name in LEVEL else "kimberlite" for a in node.names)
            elif node.module is not None and node.module.startswith("kimberlite."):
                yield node.module


def forbidden(layer: str, source: str) -> list[str]:
    """The imports of a module of this layer that do not point down."""
    return [
        name for name in imported(source) if part_of(name) != layer and LEVEL.get(part_of(name), -1) <= LEVEL[layer]
    ]


def modules() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


@pytest.mark.parametrize("path", [path for path in modules() if path.parent.name in ("client", "wire")])
def test_client_and_wire_know_nothing_of_a_log_on_disk(path: Path) -> None:
    assert {part_of(name) for name in imported(path.read_text())}.isdisjoint({"log", "storage", "crypto"})


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_an_import_only_points_down(path: Path) -> None:
    layer = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    assert layer in LEVEL, f"{layer} has no place in the layers"
    assert forbidden(layer, path.read_text()) == []


@pytest.mark.parametrize(
    ("layer", "source"),
    [
        ("errors", "from kimberlite.records import Record"),
        ("crypto", "from kimberlite.storage import Backend"),
        ("storage", "from kimberlite import log"),
        ("log", "import kimberlite"),
        ("log", "def f():\n    from kimberlite.cli.main import main"),
        ("api", "from kimberlite import sync"),
        ("log", "import kimberlite.unheard_of"),
    ],
)
def test_an_import_that_points_up_or_aside_is_seen(layer: str, source: str) -> None:
    assert len(forbidden(layer, source)) == 1


def test_the_test_tree_has_the_shape_of_the_package() -> None:
    packages = {path.parent.relative_to(PACKAGE) for path in modules() if path.parent != PACKAGE}
    tested = {path.parent.relative_to(ROOT / "tests") for path in (ROOT / "tests").rglob("test_*.py")}
    about_parts = {path for path in tested if path.parts and path.parts[0] not in ABOUT_THE_WHOLE}
    assert about_parts - packages == set(), "tests of a package that is not there"
    assert packages - tested == set(), "a package without tests"


def test_every_command_has_its_tests() -> None:
    commands = {path.stem for path in (PACKAGE / "cli").glob("*.py") if "def add_arguments" in path.read_text()}
    tested = {path.stem.removeprefix("test_") for path in (ROOT / "tests" / "cli").glob("test_*.py")}
    assert commands <= tested
