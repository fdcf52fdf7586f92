"""Reading bytes strictly: nothing is left over, nothing unnamed is non-zero."""

from __future__ import annotations

#: No stream and no log is longer, and no number of a group, a mark or a segment and no time is higher.
HIGHEST = (1 << 63) - 1


class ModelError(Exception):
    """These bytes are not what docs/format.md allows. `where` names the file and place."""

    def __init__(self, where: str, what: str) -> None:
        super().__init__(f"{where}: {what}")
        self.where = where
        self.what = what


def require(truth: bool, where: str, what: str) -> None:
    if not truth:
        raise ModelError(where, what)


def u8(value: int) -> bytes:
    return value.to_bytes(1, "little")


def u16(value: int) -> bytes:
    return value.to_bytes(2, "little")


def u32(value: int) -> bytes:
    return value.to_bytes(4, "little")


def u64(value: int) -> bytes:
    return value.to_bytes(8, "little")


def i64(value: int) -> bytes:
    return value.to_bytes(8, "little", signed=True)


def up_to(size: int, multiple: int) -> int:
    """The smallest multiple that is not below `size`."""
    return -(-size // multiple) * multiple


def is_zero(data: bytes) -> bool:
    return data == bytes(len(data))


class Cursor:
    """Takes `data` from front to back."""

    def __init__(self, data: bytes, where: str) -> None:
        self.data = data
        self.where = where
        self.place = 0

    def take(self, size: int, what: str) -> bytes:
        require(self.place + size <= len(self.data), self.where, f"{what} goes beyond the end")
        taken = self.data[self.place : self.place + size]
        self.place += size
        return taken

    def number(self, size: int, what: str) -> int:
        return int.from_bytes(self.take(size, what), "little")

    def signed(self, size: int, what: str) -> int:
        return int.from_bytes(self.take(size, what), "little", signed=True)

    def text(self, size: int, what: str) -> str:
        try:
            return self.take(size, what).decode("utf-8")
        except UnicodeDecodeError:
            raise ModelError(self.where, f"{what} is not UTF-8") from None

    def exactly(self, value: bytes, what: str) -> None:
        require(self.take(len(value), what) == value, self.where, f"{what} is wrong")

    def zeros_to(self, place: int, what: str) -> None:
        require(is_zero(self.take(place - self.place, what)), self.where, f"{what} is not zero")

    def flags(self, size: int, allowed: int, what: str) -> int:
        flags = self.number(size, what)
        require(flags & ~allowed == 0, self.where, f"{what} {flags:#x} has a bit without a meaning")
        return flags

    def end(self) -> None:
        require(self.place == len(self.data), self.where, f"{len(self.data) - self.place} bytes too many")
