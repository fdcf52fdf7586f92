"""A client in another language, written from the protocol's document, against the server."""

from __future__ import annotations

import asyncio
import json
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.server.wires import served

SOURCE = Path(__file__).parents[1] / "javascript"


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The client, with the one package that it needs."""
    if shutil.which("node") is None or shutil.which("npm") is None:
        pytest.skip("node and npm are not installed")
    where = tmp_path_factory.mktemp("javascript")
    for file in SOURCE.iterdir():
        if file.is_file():
            shutil.copy(file, where)
    command = ["npm", "install", "--no-audit", "--no-fund", "--silent"]
    done = subprocess.run(command, cwd=where, capture_output=True, text=True, timeout=120, check=False)
    if done.returncode:
        pytest.skip(f"npm has no msgpack package for it: {done.stderr.strip()[-200:]}")
    return where


async def test_a_session_of_the_second_client(tmp_path: Path, client: Path) -> None:
    async with served(tmp_path / "db") as there:
        process = await asyncio.create_subprocess_exec(
            *["node", "session.js", str(there.port)], cwd=client, stdout=-1, stderr=-1
        )
        out, err = await asyncio.wait_for(process.communicate(), 60)
        assert process.returncode == 0, err.decode()
        assert json.loads(out) == {
            "version": 1,
            "offsets": True,
            "durable": True,
            "same": True,
            "conflict": ["CONFLICT", 2, "stream"],
            "several": [["a", 0], ["b", 0]],
            "live": ["live", 0, "now"],
            "all": 1005,
            "rich": [["plain", None, [], None], ["rich", "k", [["h", "v"]], -5]],
            "down": [[499, "999"], [498, "997"], [497, "995"]],
            "got": [True, True],
            "streams": [["even", 500], ["odd", 500], ["rich", 2], ["a", 1], ["b", 1], ["live", 1]],
            "records": there.log.durable_position,
        }


def test_the_second_client_is_as_short_as_it_was_promised() -> None:
    assert len((SOURCE / "client.js").read_text().splitlines()) < 170
