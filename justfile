# The environment that `just` is in comes first, so that `.venv-test/bin/just test` needs no activation.
export PATH := parent_directory(just_executable()) + ":" + env("PATH")
export CARGO_TERM_COLOR := "never"
# So that an argument with a space stays one.
set positional-arguments

# What there is.
default:
    @just --list

# Build the native module and install the package, editable, with what the tests and benches need.
setup:
    python -m pip install -e '.[test]'

# Format everything.
fmt:
    cargo fmt --manifest-path native/Cargo.toml --all
    ruff format .
    ruff check --fix --quiet .

# Everything that can be said without running the package.
check: check-rust check-python

check-rust:
    cargo fmt --manifest-path native/Cargo.toml --all --check
    cargo clippy --manifest-path native/Cargo.toml --workspace --all-targets --locked --quiet -- -D warnings

check-python:
    ruff format --check --quiet .
    ruff check --quiet .
    mypy
    python -m mypy.stubtest --allowlist native/stubtest.allow --ignore-unused-allowlist kimberlite._native
    pytest tests/test_layers.py

# The checks, the tests of the core, and all tests of the package.
test: check test-rust test-python

test-rust:
    cargo test --manifest-path native/Cargo.toml --package kimberlite-core --locked --quiet

test-python *arguments:
    pytest "$@"

# Simulated crashes, every rule taken out in turn, real power cuts, real faults; with arguments only the first, with them.
crash *arguments="":
    python -m tests.crash.simulated {{ if arguments == "" { "--states 1000000 --jobs 2" } else { arguments } }}
    {{ if arguments == "" { "python -m tests.crash.simulated --break all --jobs 2" } else { "" } }}
    {{ if arguments == "" { "python -m tests.crash.powercut --cuts 2000 --jobs 2" } else { "" } }}
    {{ if arguments == "" { "python -m tests.crash.repaircuts --cuts 500" } else { "" } }}
    {{ if arguments == "" { "python -m tests.crash.salvaging --jobs 2" } else { "" } }}
    {{ if arguments == "" { "python -m tests.crash.realfaults" } else { "" } }}
    {{ if arguments == "" { "python -m tests.crash.daemonkills --kills 1000" } else { "" } }}
    {{ if arguments == "" { "python -m tests.crash.daemonkills --cuts 200" } else { "" } }}

# A daemon under load for an hour, or as long as `--seconds` says: memory and descriptors stay where they are.
soak *arguments:
    python -m tests.crash.soak "$@"

# Two years of a log in minutes: a clock of its own, retention, packing, erasures, rotations, kills.
years *arguments:
    python -m tests.crash.years --out results/years "$@"

# A month of a record a second, plain and encrypted: what it takes of the disk, by file and by what it is.
month *arguments:
    python -m tests.crash.month --out results/month "$@"

# Every bench, one after another, into `results/`: nothing else should run on the machine. `--quick` is done in two minutes.
bench *arguments:
    python -m benches "$@"

# Instructions that the core needs, held against those that are written down; `--write` writes them down.
bench-instructions *arguments:
    python -m benches.instructions "$@"

# Whether the working tree, or a second commit, is slower than BASE: both are built, and do everything in turns.
bench-compare base *arguments:
    python -m benches.compare "$@"

# Whether that notices what is slower by real work, ten times of ten, and calls the same commit the same: hours.
bench-slowdowns *arguments:
    python -m benches.slowdowns "$@"

# The network rows, beside other databases, or those named, as in `redis,nats`: fetched, built, started and stopped.
bench-peers *arguments:
    python -m benches.network --modes --peers "$@"

# Where a loaded daemon spends its time, or with `bench` what loads it: Python, Rust, C and kernel, results/flamegraph-serve.svg.
flamegraph *arguments:
    python -m benches.flamegraph "$@"

# The Python functions that a loaded daemon spends its time in.
profile *arguments:
    python -m benches.profile "$@"

# The machine code that it spends its time in, and what it asks of the kernel for a request.
perf *arguments:
    python -m benches.perf "$@"

# Latencies at several loads, as clients see them and in the parts of the daemon: results/latency-report.html, and a table.
latency-report *arguments:
    python -m benches.latency_report "$@"

# The tour: append, kill, recover, verify, tamper.
demo:
    kimberlite demo
