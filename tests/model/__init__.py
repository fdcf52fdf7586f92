"""The format as docs/format.md says it, slow and obvious: what the native core is held against."""

from .batches import AppendMany, Batch, Sender
from .cursor import ModelError
from .files import Identity, Mark
from .log import Log, Row, Sealed, Stream, hashes_file
from .reading import read_log
from .records import Mode, Producer, Record
from .writing import Keys, pack_segment, write_log

__all__ = [
    "AppendMany",
    "Batch",
    "Identity",
    "Keys",
    "Log",
    "Mark",
    "Mode",
    "ModelError",
    "Producer",
    "Record",
    "Row",
    "Sealed",
    "Sender",
    "Stream",
    "hashes_file",
    "pack_segment",
    "read_log",
    "write_log",
]
