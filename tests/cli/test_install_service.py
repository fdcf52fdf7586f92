"""`kimberlite install-service`, and what systemd says of what it writes."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

import kimberlite.sync
from kimberlite import Corrupt, KeyUnavailable, RolledBack, config
from kimberlite.cli import serve
from kimberlite.cli.install_service import PLACES
from kimberlite.crypto.master import CREDENTIAL
from kimberlite.errors import Misconfigured
from tests.cli.conftest import Call, command, environment
from tests.cli.test_serve import Daemon

ROOT = Path(__file__).parents[2]

needs_systemd = pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not installed")


@pytest.fixture
def root(tmp_path: Path, call: Call) -> Path:
    outcome = call("install-service", "--root", tmp_path, "--exec", sys.executable)
    assert outcome.status == 0
    return tmp_path


def test_it_writes_what_the_repository_has_and_replaces_nothing_unasked(root: Path, call: Call) -> None:
    for name, place in PLACES.items():
        text = (root / place).read_text()
        assert text.replace(sys.executable, "/usr/bin/kimberlite") == (ROOT / "deploy" / name).read_text()
    assert call("install-service", "--root", root, "--exec", sys.executable).status == 0
    changed = root / PLACES["kimberlite.toml"]
    changed.write_text('listen = "127.0.0.1:1"\n')
    assert call("install-service", "--root", root, "--exec", sys.executable).status == 78
    assert changed.read_text() == 'listen = "127.0.0.1:1"\n'
    assert call("install-service", "--root", root, "--exec", sys.executable, "--force").status == 0
    assert call("install-service", "--root", root, "--exec", "/no/such/command").status == 78


def test_the_settings_that_are_written_are_settings(root: Path) -> None:
    text = (root / PLACES["kimberlite.toml"]).read_text()
    filled = re.sub(r"^# (\w+ = )", r"\1", text, flags=re.M)
    (root / "filled.toml").write_text(filled)
    given = tomllib.loads(filled)
    assert len(given) >= 4
    found = config.load(root / "filled.toml", {}, {}, [])
    defaults = config.load(None, {}, {}, [])
    assert [each.value for each in found.settings] == [each.value for each in defaults.settings]


@needs_systemd
def test_systemd_finds_nothing_wrong_with_the_units(root: Path) -> None:
    units = [root / PLACES["kimberlite.service"], root / PLACES["kimberlite.socket"]]
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", *units], capture_output=True, text=True, timeout=60, check=False
    )
    said = [line for line in done.stderr.splitlines() if "kimberlite" in line]
    assert said == []
    assert done.returncode == 0
    exposed = subprocess.run(
        ["systemd-analyze", "security", "--offline=true", "--threshold=20", units[0]],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert exposed.returncode == 0, exposed.stdout[-300:]


def directives(unit: Path) -> dict[str, list[str]]:
    """What each is set to, one time after another."""
    found: dict[str, list[str]] = {}
    for name, value in re.findall(r"^(\w+)=(.*)$", unit.read_text(), flags=re.M):
        found.setdefault(name, []).append(value)
    return found


def test_the_unit_says_what_the_daemon_does(root: Path) -> None:
    said = directives(root / PLACES["kimberlite.service"])
    assert said["Type"] == ["notify"]
    assert said["Restart"] == ["on-failure"]
    final = (Corrupt, KeyUnavailable, Misconfigured, RolledBack)
    assert said["RestartPreventExitStatus"] == [" ".join(str(error.exit_code) for error in final)]
    assert said["LoadCredential"] == [CREDENTIAL]
    assert int(said["TimeoutStopSec"][0]) > config.load(None, {}, {}, []).serve.drain + serve.STOPPING
    assert int(said["TimeoutStartSec"][0]) > serve.PATIENCE


def calls(*names: str) -> set[str]:
    """System calls, and those of sets like @aio."""
    found = {name for name in names if not name.startswith("@")}
    if sets := [name for name in names if name.startswith("@")]:
        done = subprocess.run(["systemd-analyze", "syscall-filter", *sets], capture_output=True, timeout=60, check=True)
        inner = re.findall(r"^ +([@\w-]+)$", done.stdout.decode(), flags=re.M)
        found |= calls(*inner)
    return found


@needs_systemd
@pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed")
def test_the_unit_allows_every_system_call_of_the_daemon(root: Path, call: Call) -> None:
    [only, *denied] = directives(root / PLACES["kimberlite.service"])["SystemCallFilter"]
    allowed = calls(*only.split(), "@default")
    for each in denied:
        assert each.startswith("~")
        allowed -= calls(*each[1:].split())
    traced, where = root / "traced", f"unix:{root / 'socket'}"
    strace = ["strace", "-f", "-qq", "-o", str(traced), "-e", "signal=none"]
    process = subprocess.Popen(
        [*strace, *command("serve", root / "db", "--listen", where, "--http", "127.0.0.1:0")],
        stderr=subprocess.PIPE,
        text=True,
        env=environment(),
    )
    assert process.stderr is not None
    assert next(line for line in process.stderr if "listening on" in line)
    try:
        with kimberlite.sync.connect(f"kimberlite+{where}") as db:
            db.append("s", b"x")
        assert call("verify", f"kimberlite+{where}").status == 0
    finally:
        # strace goes on as long as the daemon does.
        os.kill(int(traced.read_text().split(maxsplit=1)[0]), signal.SIGTERM)
        process.communicate(timeout=30)
    assert process.returncode == 0
    used = set(re.findall(r"^\d+ +(\w+)\(", traced.read_text(), flags=re.M))
    assert {"accept4", "fdatasync"} & used
    assert used | {"io_uring_setup", "io_uring_enter", "io_uring_register"} <= allowed


@pytest.fixture
def activated(tmp_path: Path) -> Iterator[tuple[subprocess.Popen[bytes], int, socket.socket]]:
    """A daemon behind systemd's own socket activation, what it says to a notify socket, and its port."""
    if (activate := shutil.which("systemd-socket-activate")) is None:
        pytest.skip("systemd-socket-activate is not installed")
    told = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    told.bind(str(tmp_path / "notify"))
    told.settimeout(20)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    pass_on = [f"--setenv={name}={value}" for name, value in environment().items() if name in ("PYTHONPATH", "PATH")]
    pass_on += [f"--setenv=NOTIFY_SOCKET={tmp_path / 'notify'}", "--setenv=WATCHDOG_USEC=2000000"]
    serve = command("serve", tmp_path / "db", "--http", "")
    process = subprocess.Popen([activate, f"--listen=127.0.0.1:{port}", *pass_on, *serve], stderr=subprocess.DEVNULL)
    time.sleep(0.3)
    yield process, port, told
    process.kill()
    process.communicate()
    told.close()


def heard(told: socket.socket, word: str) -> list[str]:
    """What is said until this is."""
    said: list[str] = []
    while not said or word not in said[-1]:
        said.append(told.recv(4096).decode())
    return said


def test_it_is_started_by_its_first_client_and_stopped_by_sigterm(
    activated: tuple[subprocess.Popen[bytes], int, socket.socket],
) -> None:
    process, port, told = activated
    with kimberlite.sync.connect(f"kimberlite://127.0.0.1:{port}") as db:
        assert db.append("s", b"x").durable
        assert heard(told, "READY=1")[0].startswith("EXTEND_TIMEOUT_USEC=")
        heard(told, "WATCHDOG=1")
        process.send_signal(signal.SIGTERM)
        heard(told, "STOPPING=1")
    assert process.wait(10) == 0


HANDED_OVER = """
import os, socket, sys
from kimberlite.cli.main import main
given = socket.create_server((sys.argv[1], 0))
# Nothing else has this number any more.
os.dup2(given.detach(), 3)
os.environ |= {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "1"}
sys.exit(main(sys.argv[2:]))
"""


@pytest.mark.parametrize(("host", "status"), [("0.0.0.0", 78), ("127.0.0.1", 77)])
def test_a_socket_beyond_loopback_is_not_taken_from_anybody(tmp_path: Path, host: str, status: int) -> None:
    # Without its key it serves nobody, whatever it takes.
    arguments = ["serve", str(tmp_path / "db"), "--http", "", "--key-file", "/no/such/file"]
    done = subprocess.run(
        [sys.executable, "-c", HANDED_OVER, host, *arguments],
        env=environment(),
        capture_output=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == status, done.stderr
    assert (b"is not on loopback" in done.stderr) == (status == 78)


IMPATIENT = """
import sys
from kimberlite.cli import serve
from kimberlite.cli.main import main
serve.PATIENCE /= 1000
sys.exit(main(sys.argv[1:]))
"""


def test_a_long_recovery_asks_for_more_time_again_and_again(tmp_path: Path) -> None:
    with kimberlite.sync.open(tmp_path / "db", segment_bytes=4 << 20) as db:
        for _ in range(40):
            db.append("s", [os.urandom(1000)] * 1000)
    (tmp_path / "db" / "checkpoint").unlink()
    assert serve.EXTEND > 2 * serve.PATIENCE
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as told:
        told.bind(str(tmp_path / "notify"))
        told.settimeout(20)
        arguments = ["serve", str(tmp_path / "db"), "--listen", f"unix:{tmp_path / 'socket'}", "--http", ""]
        process = subprocess.Popen(
            [sys.executable, "-c", IMPATIENT, *arguments],
            env=environment() | {"NOTIFY_SOCKET": str(tmp_path / "notify")},
            stderr=subprocess.DEVNULL,
        )
        *asked, _ready = heard(told, "READY=1")
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0
    assert len(asked) > 3
    assert all(f"EXTEND_TIMEOUT_USEC={round(serve.EXTEND * 1e6)}" in each for each in asked)


BLOCKED = """
import sys, threading, time
from kimberlite.cli.main import main
from kimberlite.log.committer import Committer
what = sys.argv.pop(1)
committed = Committer._write
def slow(self, flight):
    if flight.sealed.number > 3 and what == "loop":
        time.sleep(60)
    if flight.sealed.number > 3 and what == "committer":
        # Its write is never heard of again.
        self.backend.submit = lambda *_: None
    committed(self, flight)
Committer._write = slow
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.parametrize("what", ["loop", "committer"])
def test_the_watchdog_hears_nothing_when_the_loop_or_the_committer_is_blocked(tmp_path: Path, what: str) -> None:
    """As systemd does, the test kills what it has not heard of."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as told:
        told.bind(str(tmp_path / "notify"))
        told.settimeout(20)
        more = {"NOTIFY_SOCKET": str(tmp_path / "notify"), "WATCHDOG_USEC": "1000000"}
        serve = ["serve", str(tmp_path / "db"), "--listen", f"unix:{tmp_path / 'socket'}", "--http", ""]
        process = subprocess.Popen(
            [sys.executable, "-c", BLOCKED, what, *serve], env=environment() | more, stderr=subprocess.DEVNULL
        )
        heard(told, "READY=1")
        with pytest.raises(kimberlite.KimberliteError):
            hang(tmp_path)
        told.settimeout(1.0)
        assert until_silent(told) < 10
        assert process.poll() is None
        process.send_signal(signal.SIGABRT)
        process.wait(10)
    daemon = Daemon(tmp_path / "db", "--listen", f"unix:{tmp_path / 'socket'}")
    daemon.listening()
    with kimberlite.sync.connect(f"kimberlite+unix:{tmp_path / 'socket'}") as db:
        assert len(list(db.read("s"))) >= 3
    assert daemon.end() == 0


def until_silent(told: socket.socket) -> int:
    """How often something is said before nothing is."""
    for count in range(100):
        try:
            told.recv(4096)
        except TimeoutError:
            return count
    return 100


def hang(tmp_path: Path) -> None:
    """Appends until nothing is answered any more."""
    pid = os.fork()
    if pid == 0:
        with kimberlite.sync.connect(f"kimberlite+unix:{tmp_path / 'socket'}") as db:
            for _ in range(100):
                db.append("s", b"x")
        os._exit(0)
    time.sleep(1.5)
    done, _ = os.waitpid(pid, os.WNOHANG)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    assert done == 0, "it went on"
    raise kimberlite.UnknownOutcome("nothing is answered")
