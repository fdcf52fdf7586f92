"""The load generator: what `kimberlite bench` and the benches drive a daemon with."""
