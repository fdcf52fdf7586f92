"""The protocol of `docs/protocol.md`: messages as pure functions of bytes."""
