"""The format as docs/format.md says it, slow and obvious: what the native core is held against."""
