"""What the tests use of it."""

from typing import Any, NamedTuple

class ExtType(NamedTuple):
    code: int
    data: bytes

def packb(o: Any) -> bytes: ...
def unpackb(packed: bytes, *, strict_map_key: bool = True) -> Any: ...
