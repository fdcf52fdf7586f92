"""The daemon: listeners, connections, and the one place where the wire meets the log."""
