"""The way to a daemon: `kimberlite.connect`."""
