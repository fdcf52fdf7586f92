"""What shows where a loaded daemon's time goes, briefly and for real: every command ends, and shows what there was."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from xml.etree import ElementTree

import pytest

from benches import flame, frames, perf, rust, sampling
from benches.packages import Missing, installed
from benches.sampling import INTERPRETER, KERNEL, LIBRARY, PYTHON, RUST, THREAD, Frame, Profile

ROOT = Path(__file__).parents[2]
SVG = "{http://www.w3.org/2000/svg}"
SMALL = ("--clients", "8", "--batch", "10", "--seconds", "0.6")


def python(*arguments: str, cwd: Path) -> str:
    """What it printed."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-m", *arguments],
        cwd=cwd,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def perf_is_here() -> None:
    """Fetching it is too slow for a test."""
    for program in (sampling.PERF, rust.ADDR2LINE):
        if installed(program) is None:
            pytest.skip(f"no {program.name}: apt install {program.package}")
    try:
        sampling.had_perf()
        frames.built()
    except Missing as problem:
        pytest.skip(str(problem))


@pytest.fixture
def sampler(tmp_path: Path, perf_is_here: None) -> Path:
    """Where to run what needs perf."""
    return tmp_path


def rectangles(svg: str) -> list[tuple[str, str, float, float, float]]:
    """Kind, name, left, width and bottom of each frame."""
    found = []
    for group in ElementTree.fromstring(svg).iterfind(f"{SVG}g"):
        title, box = group.find(f"{SVG}title"), group.find(f"{SVG}rect")
        assert title is not None
        assert title.text is not None
        assert box is not None
        left, top, width = (float(box.attrib[name]) for name in ("x", "y", "width"))
        found.append((group.attrib["data-kind"], title.text.splitlines()[0], left, width, top))
    return found


def test_one_picture_has_python_rust_and_kernel_frames_of_a_daemon(sampler: Path) -> None:
    printed = python("benches.flamegraph", "serve", *SMALL, "--out", "serve.svg", cwd=sampler)
    assert [path.name for path in sampler.iterdir()] == ["serve.svg"]
    text = (sampler / "serve.svg").read_text(encoding="utf-8")
    found = rectangles(text)
    named = {kind: {name for each, name, *_ in found if each == kind} for kind in sampling.KINDS}
    assert "log/committer.py:Committer._acknowledge" in named[PYTHON]
    assert any("Sealer::seal" in name for name in named[RUST])
    assert "do_syscall_64" in named[KERNEL]
    assert "main thread" in named[THREAD]
    assert re.search(r"8 clients × 1 in flight × 10 records of 256 B, plain, [\d,]+ records/s", text)
    assert "serve.svg: append: 8 clients" in printed

    bottom = max(top for *_, top in found)
    assert sum(width for *_, width, top in found if top == bottom) == pytest.approx(
        flame.WIDTH - 2 * flame.MARGIN, rel=0.01
    )
    rows: dict[float, list[tuple[float, float]]] = {}
    for _, _, left, width, top in found:
        rows.setdefault(top, []).append((left, left + width))
    for top, row in rows.items():
        assert all(one[1] <= other[0] + 0.02 for one, other in pairwise(sorted(row)))
        below = rows.get(top + flame.ROW, [(flame.MARGIN, flame.WIDTH - flame.MARGIN)])
        for left, right in row:
            assert any(begin - 0.02 <= left and right <= end + 0.02 for begin, end in below)


def test_the_processes_of_the_load_have_a_picture_too(sampler: Path) -> None:
    python("benches.flamegraph", "bench", *SMALL, "--out", "bench.svg", cwd=sampler)
    found = rectangles((sampler / "bench.svg").read_text(encoding="utf-8"))
    assert {"load/worker.py:Crowd._drive"} <= {name for kind, name, *_ in found if kind == PYTHON}
    assert any("Swarm" in name for kind, name, *_ in found if kind == RUST)
    assert any(kind == KERNEL for kind, *_ in found)


def test_python_functions_are_shown_with_their_calls_and_what_they_cause(sampler: Path) -> None:
    printed = python("benches.profile", *SMALL, "--markdown", cwd=sampler)
    assert not list(sampler.iterdir())
    lines = [line.split("|")[1:-1] for line in printed.splitlines() if line.startswith("| log/committer.py")]
    rows = {cells[0].strip(): [cell.strip() for cell in cells[1:]] for cells in lines}
    own, _python, _rust, _c, _kernel, total, calls, micro = rows["log/committer.py:Committer._acknowledge"]
    assert 0 < float(own[:-1]) <= float(total[:-1]) <= 100
    assert 0 < float(calls) <= 1
    assert float(micro) > 0


def test_machine_code_and_system_calls_of_a_request_are_shown(sampler: Path) -> None:
    printed = python("benches.perf", *SMALL, cwd=sampler)
    assert not list(sampler.iterdir())
    shares = dict(re.findall(r"^(kernel|Rust core|Python interpreter|libc) +(\d+\.\d)%", printed, re.MULTILINE))
    assert set(shares) >= {"kernel", "Rust core", "Python interpreter"}
    assert 30 < sum(map(float, shares.values())) <= 100.2
    assert re.search(r"^_PyEval_EvalFrameDefault +Python interpreter +\d", printed, re.MULTILINE)
    [writes] = re.findall(r"^write\(\) +([\d.]+)$", printed, re.MULTILINE)
    assert 0.05 < float(writes) < 10


def test_latencies_of_clients_and_of_the_parts_of_a_daemon_are_side_by_side(place: Path) -> None:
    printed = python("benches.latency_report", "--seconds", "0.3", "--out", "report.html", cwd=place)
    assert [path.name for path in place.iterdir()] == ["report.html"]
    loads = re.findall(r"^(alone|together|at half of that rate|half of them read): ", printed, re.MULTILINE)
    assert loads == ["alone", "together", "at half of that rate", "half of them read"]
    medians: dict[str, list[float]] = {}
    for part, median in re.findall(r"^(\w[\w: ]*?)  +[\d,]+ +([\d.]+) ", printed, re.MULTILINE):
        medians.setdefault(part, []).append(float(median))
    counts = {part: len(each) for part, each in medians.items()}
    assert counts == {"client: append": 4, "append": 4, "wait": 4, "seal": 4, "sync": 4, "client: read": 1, "read": 1}
    assert all(client > inside for client, inside in zip(medians["client: append"], medians["append"], strict=True))
    page = (place / "report.html").read_text(encoding="utf-8")
    pictures = re.findall(r"<svg.*?</svg>", page, re.DOTALL)
    assert [len(re.findall(r'stroke-width="2"', picture)) for picture in pictures] == [10, 10, 10, 14]
    assert page.count("<table>") == 4


def test_without_perf_there_is_one_line_that_says_so(tmp_path: Path) -> None:
    program = (
        "import sys; from benches import flamegraph, packages, sampling\n"
        "sampling.PERF = packages.Program('no-such-program', 'no-such-package', 'none', 'usr/bin')\n"
        "packages._download = lambda *_: (_ for _ in ()).throw(packages.Missing('apt-get: none'))\n"
        "sys.argv = ['flamegraph']; sys.exit(flamegraph.main())"
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT), "XDG_CACHE_HOME": str(tmp_path / "cache")}
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (1, "", "flamegraph: apt-get: none\n")


def test_frames_are_counted_while_errors_pass_through_them(tmp_path: Path) -> None:
    try:
        library = frames.built()
    except Missing as problem:
        pytest.skip(str(problem))
    program = (
        "from benches import frames\n"
        "frames.install()\n"
        "def failing():\n"
        "    try:\n"
        "        yield 1\n"
        "    except ValueError:\n"
        "        yield 2\n"
        "def counted(n): return n if n < 2 else counted(n - 1) + counted(n - 2)\n"
        "each = failing(); next(each); print(each.throw(ValueError()), counted(10))"
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT)} | frames.environment(library, tmp_path)
    with subprocess.Popen([sys.executable, "-c", program], env=environment, stdout=subprocess.PIPE) as process:
        assert process.communicate()[0] == b"2 55\n"
    functions = frames.functions(tmp_path, process.pid)
    calls = frames.calls(tmp_path, process.pid)
    found = {each.name: calls[number] for number, each in functions.items() if each.file == "<string>"}
    # A generator is made, asked, thrown at and closed.
    assert found == {"counted": 177, "failing": 4}


def stack(*frames: tuple[str, str]) -> tuple[Frame, ...]:
    return tuple(Frame(kind, name) for kind, name in frames)


def test_stacks_that_begin_alike_are_one_frame_as_wide_as_all_of_them() -> None:
    main = (THREAD, "main thread"), (PYTHON, "a.py:f")
    profile = Profile()
    profile.stacks[stack(*main, (INTERPRETER, "eval"))] = 1
    profile.stacks[stack(*main, (RUST, "a < b"), (KERNEL, "write"))] = 3
    found = {name: width for _, name, _, width, _ in rectangles(flame.svg("t", "about", profile))}
    whole = flame.WIDTH - 2 * flame.MARGIN
    assert found == {
        "main thread": whole,
        "a.py:f": whole,
        "eval": whole / 4,
        "a < b": 3 * whole / 4,
        "write": 3 * whole / 4,
    }
    assert "Rust 0.0%" in flame.svg("t", "about", profile)
    assert "kernel 75.0%" in flame.svg("t", "about", profile)


@pytest.mark.parametrize(
    ("symbol", "name"),
    [
        ("__pyx_pw_6uvloop_4loop_4Loop_25run_forever", "uvloop.Loop.run_forever"),
        ("__pyx_f_6uvloop_4loop_8UVStream__try_write", "uvloop.UVStream.try_write"),
        ("__pyx_f_6uvloop_4loop___on_uvpoll_event", "uvloop.on_uvpoll_event"),
        ("uv__io_poll", "uv__io_poll"),
    ],
)
def test_what_cython_made_of_a_name_is_undone(symbol: str, name: str) -> None:
    assert sampling._cython(symbol) == name


def test_rust_names_are_those_of_the_source() -> None:
    assert (
        rust.short("_native::log::appending::<impl _native::log::Log>::__pymethod_acknowledge__")
        == "log::Log::acknowledge"
    )
    assert rust.short("kimberlite_core::group::seal::Sealer::seal") == "group::seal::Sealer::seal"


def test_functions_are_named_from_their_package_on() -> None:
    for file, shown in {
        "/x/kimberlite/log/log.py": "log/log.py:f",
        "/x/site-packages/uvloop/__init__.py": "uvloop/__init__.py:f",
        "/usr/lib/python3.11/asyncio/runners.py": "asyncio/runners.py:f",
        "<string>": "<string>:f",
    }.items():
        assert frames.Function(file, "f", 1).label() == shown


def test_parts_of_a_daemon_are_told_apart() -> None:
    uvloop = Frame(LIBRARY, "f", "/x/uvloop/loop.cpython-311-x86_64-linux-gnu.so")
    assert perf.part(uvloop) == "uvloop"
    assert perf.part(Frame(LIBRARY, "f", "/lib/libc.so.6")) == "libc"
    assert perf.part(Frame(RUST, "f")) == "Rust core"
