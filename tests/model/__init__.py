"""The format as docs/format.md says it, slow and obvious: what the native core is held against."""

from .batches import AppendMany, Batch, Operation, Said, Sender
from .cursor import ModelError
from .dropping import past_file, retained_of, without
from .files import Identity, Mark
from .log import Log, Row, Sealed, Stream, hashes_file
from .reading import read_log
from .records import Mode, Producer, Record, encode_system
from .retained import Retained, pieces_of
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
    "Operation",
    "Producer",
    "Record",
    "Retained",
    "Row",
    "Said",
    "Sealed",
    "Sender",
    "Stream",
    "encode_system",
    "hashes_file",
    "pack_segment",
    "past_file",
    "pieces_of",
    "read_log",
    "retained_of",
    "without",
    "write_log",
]
