"""What goes on beside other work: the next piece of a file is read while the last one is worked on."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from types import TracebackType
from typing import Self, TypeVar

from kimberlite.storage.backend import BLOCK, File, read_around

T = TypeVar("T")


@contextmanager
def aside(file: File | None, call: Callable[[], T]) -> Iterator[Callable[[], T]]:
    """A call, begun, that belongs to a file; what waits for its result. A simulated file belongs to one thread."""
    if file is None or file.fd < 0:
        yield call
        return
    with ThreadPoolExecutor(1, "kimberlite-aside") as executor:
        yield executor.submit(call).result


class Ahead:
    """Pieces of a file, one after another. A simulated file is read when asked: it belongs to one thread."""

    def __init__(self, file: File, place: int, piece: int) -> None:
        self._file, self._piece = file, piece
        self._next = place
        self._executor = ThreadPoolExecutor(1, "kimberlite-ahead") if file.fd >= 0 else None
        self._future: Future[bytes] | None = None
        self._back = b""
        #: Whether holes are passed over.
        self._over = False
        #: Where the first block is that the disk could not read.
        self.unreadable: int | None = None

    def __enter__(self) -> Self:
        self._begin()
        return self

    def __exit__(
        self, _type: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        if self._executor is not None:
            self._executor.shutdown(wait=True)

    def _begin(self) -> None:
        if self._executor is not None:
            self._future = self._executor.submit(self._read)

    def _read(self) -> bytes:
        if self._over:
            extent = self._file.extent(self._next)
            if extent is None:
                return b""
            self._next = max(self._next, extent[0] - extent[0] % BLOCK)
        return read_around(self._file, self._next, self._piece, self._missed)

    def _missed(self, place: int) -> None:
        if self.unreadable is None:
            self.unreadable = place

    def take(self) -> bytes:
        """The next piece; shorter only at the end of the file, and then empty."""
        data = self._read() if self._future is None else self._future.result()
        self._next += len(data)
        if len(data) == self._piece:
            self._begin()
        else:
            self._future = None
        return data

    def back(self, data: bytes) -> None:
        """The end of what was taken, for whoever asks for the rest."""
        self._back = data

    def rest(self) -> Iterator[tuple[int, bytes]]:
        """What was put back, and then all that may be other than zeros, a piece at a time; each with its place."""
        if self._back:
            yield self._next - len(self._back), self._back
        self._over = True
        while data := self.take():
            yield self._next - len(data), data
            if len(data) < self._piece:
                return
