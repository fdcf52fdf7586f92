"""`kimberlite config`, and how settings come together."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from kimberlite import Misconfigured, config
from tests.cli.conftest import Call


def test_settings_come_in_rising_order_and_say_from_where(tmp_path: Path) -> None:
    file = tmp_path / "kimberlite.toml"
    file.write_text(
        'listen = "127.0.0.1:1"\nbackend = "threads"\ndrain = 1\n[log]\nsync = "os"\ndepth = 2\n[limits]\nidle = 9\n'
    )
    environment = {"KIMBERLITE_LOG_DEPTH": "3", "KIMBERLITE_DRAIN": "2.5", "KIMBERLITE_KEY": "secret", "PATH": ""}
    found = config.load(file, environment, {"listen": "127.0.0.1:2"}, ["log.compression=3", "limits.idle=10"])
    origins = {each.name: (each.value, each.origin) for each in found.settings if each.origin != "default"}
    assert origins == {
        "listen": ("127.0.0.1:2", "--listen"),
        "backend": ("threads", f"{file}: backend"),
        "drain": (2.5, "KIMBERLITE_DRAIN"),
        "log.sync": ("os", f"{file}: log.sync"),
        "log.depth": (3, "KIMBERLITE_LOG_DEPTH"),
        "log.compression": (3, "--set log.compression"),
        "limits.idle": (10.0, "--set limits.idle"),
    }
    assert (found.serve.listen, found.log.sync, found.limits.idle) == ("127.0.0.1:2", "os", 10.0)
    assert "secret" not in str(found)


@pytest.mark.parametrize(
    ("text", "environment", "extra", "place"),
    [
        ("lisen = 1\n", {}, [], "lisen"),
        ("listen = 1\n", {}, [], "listen"),
        ("[log]\ndepth = 2.5\n", {}, [], "log.depth"),
        ("[log]\ndepth = true\n", {}, [], "log.depth"),
        ("[log]\ndepth = 9\n", {}, [], "log.depth"),
        ("[logs]\ndepth = 2\n", {}, [], "logs"),
        ("[logs]\n", {}, [], "logs"),
        ('"log.depth" = 2\n', {}, [], "log.depth"),
        ("", {}, ["log.depth=2", "limits.connections=true"], "--set limits.connections"),
        ("depth = [\n", {}, [], "toml"),
        ("depth = " + "[" * 5_000 + "]" * 5_000 + "\n", {}, [], "toml"),
        (f"depth = {'9' * 5_000}\n", {}, [], "toml"),
        ('listen = "unix:"\n', {}, [], "listen"),
        ("", {"KIMBERLITE_LOG_DEPTH": "many"}, [], "KIMBERLITE_LOG_DEPTH"),
        ("", {"KIMBERLITE_DEPTH": "2"}, [], "KIMBERLITE_DEPTH"),
        ("", {}, ["log.depth=0"], "--set"),
        ("", {}, ["log.sync=never"], "--set"),
        ("", {}, ["nothing=1"], "nothing"),
        ("", {}, ["backend=floppy"], "backend"),
    ],
)
def test_what_does_not_fit_is_refused_with_its_place(
    tmp_path: Path, text: str, environment: dict[str, str], extra: list[str], place: str
) -> None:
    file = tmp_path / "kimberlite.toml"
    file.write_text(text)
    with pytest.raises(Misconfigured, match=place) as refused:
        config.load(file, environment, {}, extra)
    assert refused.value.exit_code == 78
    with pytest.raises(Misconfigured, match="nowhere"):
        config.load(tmp_path / "nowhere", {}, {}, [])


def test_it_prints_what_is_in_force(call: Call) -> None:
    printed = call("config", "--listen", "unix:/x", "--set", "log.sync=os").out.decode().splitlines()
    assert printed[0].split("  # ")[0].rstrip() == 'listen = "unix:/x"'
    assert [line.split("# ")[1] for line in printed if line.startswith("log.sync")] == ["--set log.sync"]
    told: dict[str, Any] = json.loads(call("config", "--json").out)
    assert told["log.depth"] == {"value": 4, "origin": "default"}
    assert call("config", "--set", "log.depth=99").status == 78
